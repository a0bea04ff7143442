"""domain_batch_norm against a torch BatchNorm for each domain, and the context that tells them."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import normbench
from normbench import build, domains

IDS = torch.tensor([2, 0, 0, 2, 0, 2, 0])
"""Three domains of which the second does not occur."""


def pair(count=3):
    """Our layer, and a torch BatchNorm for each domain with the same parameters."""
    ours = build("domain_batch_norm", 8, domains=count)
    theirs = [nn.BatchNorm2d(8) for _ in range(count)]
    for own, bn in zip([ours, *ours.others], theirs, strict=True):
        nn.init.normal_(own.weight)
        nn.init.normal_(own.bias)
        bn.weight.data.copy_(own.weight)
        bn.bias.data.copy_(own.bias)
    return ours, theirs


def by_domain(theirs, x, ids):
    """What a BatchNorm for each domain makes of a mixed batch."""
    y = torch.empty_like(x)
    for domain, bn in enumerate(theirs):
        if (ids == domain).any():
            y[ids == domain] = bn(x[ids == domain])
    return y


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_mixed_batch_is_normalized_domain_by_domain(layout):
    ours, theirs = pair()
    for training in (True, True, False):
        x = (torch.randn(7, 8, 4, 3) + IDS.view(-1, 1, 1, 1)).contiguous(memory_format=layout)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        probe = torch.randn_like(x)
        with domains.using(IDS):
            y = ours.train(training)(a)
        expected = by_domain([bn.train(training) for bn in theirs], b, IDS)
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous(memory_format=layout)
        (y * probe).sum().backward()
        (expected * probe).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    for own, bn in zip([ours, *ours.others], theirs, strict=True):
        for (name, value), expected in zip(bn.named_buffers(), own.buffers(False), strict=True):
            torch.testing.assert_close(expected, value, msg=name)
        for mine, other in zip(own.parameters(False), bn.parameters(), strict=True):
            assert (mine.grad is None) is (other.grad is None)
            if other.grad is not None:
                torch.testing.assert_close(mine.grad, other.grad)


def test_a_domain_that_does_not_occur_keeps_its_state():
    ours, _ = pair()
    before = copy.deepcopy(ours.others[0].state_dict())
    with domains.using(IDS):
        ours(torch.randn(7, 8, 4, 3)).square().sum().backward()
    assert all(torch.equal(before[k], v) for k, v in ours.others[0].state_dict().items())
    assert all(p.grad is None for p in ours.others[0].parameters())


def test_without_a_context_every_sample_is_of_domain_0():
    (ours, theirs), x = pair(), torch.randn(7, 8, 4, 3)
    assert torch.equal(ours(x), theirs[0](x))
    assert ours.others[0].num_batches_tracked == 0


def test_a_domain_does_not_see_the_others():
    ours, _ = pair()
    x = torch.randn(7, 8, 4, 3)
    other = torch.where((IDS == 2).view(-1, 1, 1, 1), x * 9 + 5, x)
    with domains.using(IDS):
        assert torch.equal(ours(x)[IDS == 0], ours(other)[IDS == 0])


def test_every_domain_starts_from_the_batch_norm_it_replaces_and_domain_0_goes_back():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nn.init.normal_(model[1].weight)
    model(torch.randn(4, 3, 9, 9))
    before, x = model[1].state_dict(), torch.randn(2, 3, 9, 9)
    normbench.swap(model, "domain_batch_norm", domains=3, example_input=x)
    for layer in (model[1], *model[1].others):
        own = layer.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in before.items())
    model[1].others[0].weight.data.zero_()
    normbench.swap(model, "batch_norm", example_input=x)
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())


def test_a_state_of_its_own_is_loaded_as_it_is():
    (ours, _), fresh = pair(), build("domain_batch_norm", 8, domains=3)
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh.others[1].weight, ours.others[1].weight)
    assert not torch.equal(fresh.others[1].weight, ours.weight)


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet"])
def test_two_steps_of_mixed_domains_in_a_timm_model(model):
    net = timm.create_model(model, num_classes=10)
    report = normbench.swap(net, "domain_batch_norm")
    assert report.replaced == report.found > 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, ids = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 1, 0])
    for _ in range(2):
        with domains.using(ids):
            loss = nn.functional.cross_entropy(net.train()(x), ids)
        loss.backward()
        optimizer.step()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.zero_grad()
        assert torch.isfinite(loss)
    with domains.using(1 - ids):
        swapped = net.eval()(x)
    assert not torch.allclose(swapped, net(x))


def test_both_domains_have_finite_gradients_under_autocast():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), build("domain_batch_norm", 8))
    with domains.using(torch.tensor([0, 1, 0, 1])), torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(4, 3, 8, 8) * 100)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_compiled_layer_sees_the_domains_change():
    torch.compiler.reset()
    ours, _ = pair(2)
    compiled = torch.compile(copy.deepcopy(ours), backend="eager", fullgraph=True)
    x = torch.randn(4, 8, 3, 3)
    for ids in (None, [0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1]):
        if ids is None:
            torch.testing.assert_close(compiled(x), ours(x))
            continue
        with domains.using(torch.tensor(ids)):
            torch.testing.assert_close(compiled(x), ours(x))
    torch.testing.assert_close(compiled(x), ours(x))
    twin = compiled._orig_mod.state_dict()
    torch.testing.assert_close(dict(twin), dict(ours.state_dict()))


def test_a_domain_with_one_value_per_channel_is_refused():
    with domains.using(torch.tensor([0, 0, 1])), pytest.raises(ValueError, match="per channel"):
        build("domain_batch_norm", 8)(torch.randn(3, 8, 1, 1))


def test_a_domain_that_the_layer_does_not_have_is_refused():
    layer = build("domain_batch_norm", 8)
    with domains.using(torch.tensor([0, 2])), pytest.raises(ValueError, match="0 to 1"):
        layer(torch.randn(2, 8, 3, 3))


def test_domains_of_a_batch_of_another_size_are_refused():
    with domains.using(IDS), pytest.raises(ValueError, match=r"4 samples.*7 domains"):
        build("domain_batch_norm", 8)(torch.randn(4, 8, 3, 3))


@pytest.mark.parametrize("ids", [torch.zeros(3), torch.zeros(3, 1).long(), torch.tensor([0, -1])])
def test_domains_are_numbers_from_0_up_one_per_sample(ids):
    with pytest.raises(ValueError, match="domains are"), domains.using(ids):
        pass
    assert domains.current(3) is None


def test_the_context_nests_and_ends_with_an_error_too():
    def fails():
        with domains.using(torch.tensor([1])):
            assert domains.current(1).parts[0][0] == 1
            raise RuntimeError

    with domains.using(torch.tensor([0, 1])):
        with pytest.raises(RuntimeError):
            fails()
        assert domains.current(2).back.tolist() == [0, 1]
    assert domains.current(5) is None
