"""Precise batch norm against the closed form on small nets, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import normbench
from normbench import build, domains
from normbench.recalibration import recalibrate, statistics_layers

BATCHES = [torch.randn(n, 3, 8, 8).double() * 2 + n for n in (6, 6, 4, 2)]
"""Of unequal sizes, and of means that are far apart."""


def net(norm="batch_norm", width=5):
    """Convolution, norm, ReLU, convolution, norm; with averages that fit nothing."""
    torch.manual_seed(1)
    layers = [build(norm, width), build(norm, width)] if isinstance(norm, str) else [norm(), norm()]
    first, second = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3)
    model = nn.Sequential(first, layers[0], nn.ReLU(), second, layers[1]).double()
    for layer in layers:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        layer.running_mean.normal_()
    return model


def population(values):
    """Mean and unbiased variance of the channels of all these tensors, as of one set."""
    flat = torch.cat([v.transpose(0, 1).flatten(1) for v in values], 1)
    return flat.mean(1), flat.var(1)


@pytest.mark.parametrize("norm", ["batch_norm", lambda: nn.BatchNorm2d(5)], ids=["ours", "torch"])
def test_the_closed_form_of_two_layers(norm):
    model = net(norm)
    reference = copy.deepcopy(model).train()
    with torch.no_grad():
        first = [reference[0](x) for x in BATCHES]
        # the second layer sees the first normalize by its batch, as in training
        second = [reference[:4](x) for x in BATCHES]
    report = recalibrate(model.eval(), BATCHES)
    assert (report.layers, report.batches, report.unreached) == (2, 4, ())
    for layer, values in ((model[1], first), (model[4], second)):
        mean, var = population(values)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)


def test_the_variance_is_the_populations_and_not_the_average_of_the_batches():
    model = nn.Sequential(build("batch_norm", 1, momentum=1.0))
    batches = [torch.zeros(2, 1, 2, 2) - 1, torch.zeros(2, 1, 2, 2) + 1]
    recalibrate(model, batches)
    assert model[0].running_mean.item() == 0
    torch.testing.assert_close(model[0].running_var, torch.tensor([16 / 15]))


def test_one_batch_is_what_a_momentum_of_one_leaves():
    model = net()
    reference = copy.deepcopy(model).train()
    reference[1].momentum = reference[4].momentum = 1.0
    reference(BATCHES[0])
    recalibrate(model, BATCHES[:1])
    for ours, other in ((model[1], reference[1]), (model[4], reference[4])):
        torch.testing.assert_close(ours.running_mean, other.running_mean)
        torch.testing.assert_close(ours.running_var, other.running_var)


def test_batch_renorms_deviation_has_eps_inside_the_root():
    model = net("batch_renorm")
    with torch.no_grad():
        mean, var = population([model[0](x) for x in BATCHES])
    count = sum(len(x) for x in BATCHES) * 36
    recalibrate(model, BATCHES)
    torch.testing.assert_close(model[1].running_mean, mean)
    expected = (var * (count - 1) / count + 1e-3).sqrt()
    torch.testing.assert_close(model[1].running_std, expected)


def test_the_shift_that_is_reported_is_gone_the_second_time():
    model = nn.Sequential(build("batch_norm", 2)).double()
    x = torch.randn(50, 2, 4, 4).double() * torch.tensor([3.0, 0.5]).view(2, 1, 1) + 2
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)
    [(name, shift)] = recalibrate(model, [x]).shifts.items()
    assert name == "0"
    assert shift.mean == pytest.approx((mean / std).abs().mean().item(), rel=1e-4)
    assert shift.log_std == pytest.approx(std.log().abs().mean().item(), rel=1e-4)
    again = recalibrate(model, [x])
    assert again.mean_shift == pytest.approx(0, abs=1e-9)
    assert again.shifts["0"].log_std == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("method", ["batch_norm", "batch_renorm", "four_things"])
def test_nothing_but_the_statistics_changes(method):
    model = timm.create_model("test_efficientnet", num_classes=10, drop_rate=0.5)
    normbench.swap(model, method)
    model.train()(torch.randn(4, 3, 64, 64))
    model.blocks[0].eval()
    flags = [module.training for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    report = recalibrate(model, (torch.randn(4, 3, 64, 64) for _ in range(2)))
    assert report.layers == 13
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, state[n])}
    assert {name.rpartition(".")[2][:8] for name in changed} == {"running_"}
    assert len(changed) == 26
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_an_error_midway_leaves_everything_as_it_was():
    model = net().train()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate(model, [BATCHES[0], torch.zeros(2, 4, 8, 8).double()])
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), build("batch_norm", 3)).double().train()
    recalibrate(model, BATCHES)
    torch.testing.assert_close(model[1].running_mean, population(BATCHES)[0])


def test_the_order_of_the_batches_is_the_same_to_it():
    forward, backward = net("batch_renorm"), net("batch_renorm")
    recalibrate(forward, BATCHES)
    recalibrate(backward, BATCHES[::-1])
    torch.testing.assert_close(dict(forward.state_dict()), dict(backward.state_dict()))


def test_at_most_so_many_batches_are_used_and_labels_are_passed_over():
    some, all_of_them = net(), net()
    report = recalibrate(some, ((x, torch.zeros(len(x))) for x in BATCHES), at_most=2)
    assert report.batches == 2
    recalibrate(all_of_them, BATCHES[:2])
    torch.testing.assert_close(dict(some.state_dict()), dict(all_of_them.state_dict()))


def test_evaluation_of_the_first_layer_is_normal_on_the_population():
    model = net()
    nn.init.ones_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    recalibrate(model, BATCHES)
    mean, var = population([model.eval()[:2](x).detach() for x in BATCHES])
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(var, torch.ones_like(var), rtol=1e-3, atol=0)


def test_each_domain_gets_the_population_of_its_samples():
    model = nn.Sequential(build("domain_batch_norm", 3)).double()
    ids = [torch.arange(len(x)) % 2 for x in BATCHES]

    def batches():
        for x, numbers in zip(BATCHES, ids, strict=True):
            with domains.using(numbers):
                yield x

    report = recalibrate(model, batches())
    assert list(report.shifts) == ["0", "0.others.0"]
    for domain, layer in enumerate((model[0], model[0].others[0])):
        own = [x[numbers == domain] for x, numbers in zip(BATCHES, ids, strict=True)]
        mean, var = population(own)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)


def test_a_layer_that_no_batch_reaches_keeps_its_averages():
    model = nn.Sequential(build("domain_batch_norm", 3)).double()
    report = recalibrate(model, BATCHES)
    assert report.unreached == ("0.others.0",)
    assert torch.equal(model[0].others[0].running_mean, torch.zeros(3).double())


def test_precise_statistics_repair_averages_that_are_out_of_date():
    torch.manual_seed(0)
    model = net().train()
    x = BATCHES[0]
    wanted = model(x).detach()
    wrong = (model.eval()(x) - wanted).abs().mean()
    recalibrate(model, [x])
    assert (model(x) - wanted).abs().mean() < 0.05 * wrong


def test_layers_with_statistics_are_found():
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3),
        build("batch_renorm", 3), build("group_norm", 3),
    )  # fmt: skip
    assert [name for name, _ in statistics_layers(model)] == ["0", "3"]


@pytest.mark.parametrize(
    ("model", "batches", "given", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), BATCHES, {}, "Sequential has no"),
        (nn.Sequential(nn.BatchNorm2d(3)), [], {}, "no batches"),
        (nn.Sequential(nn.BatchNorm2d(3)), BATCHES, {"method": "exact"}, "expected one of precise"),
    ],
)
def test_mistakes_end_with_a_sentence(model, batches, given, message):
    with pytest.raises(ValueError, match=message):
        recalibrate(model, batches, **given)


def test_statistics_of_something_else_are_refused():
    class Folded(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x.flatten(1, 2)[..., None])

    with pytest.raises(ValueError, match="something else than the channels"):
        recalibrate(nn.Sequential(Folded(24)).double(), BATCHES)
