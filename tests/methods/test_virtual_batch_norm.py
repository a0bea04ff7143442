from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from normbench import build, swap

C = 4


def referred(batch=8):
    """A layer in float64 and the batch it refers to."""
    layer, reference = build("virtual_batch_norm", C).double(), torch.randn(batch, C, 5, 5).double()
    layer(reference * 2 + 1)
    return layer, reference * 2 + 1


def test_the_first_training_batch_goes_through_batch_norm():
    a = torch.randn(4, C, 5, 5, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    ya, yb = build("virtual_batch_norm", C)(a), build("batch_norm", C)(b)
    torch.testing.assert_close(ya, yb)
    ya.cos().sum().backward()
    yb.cos().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_the_reference_is_kept_for_good():
    layer, reference = referred()
    torch.testing.assert_close(layer.reference_mean, reference.mean((0, 2, 3)))
    torch.testing.assert_close(layer.reference_var, reference.var((0, 2, 3), correction=0))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for _ in range(3):
        layer(torch.randn(5, C, 3, 3).double() * 7)
    layer.eval()(torch.randn(5, C, 3, 3).double())
    assert before["reference_size"] == 8
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_is_normalized_with_the_reference_as_one_of_its_batch(training):
    layer, reference = referred()
    x = torch.randn(3, C, 5, 5).double() * 3 - 2
    found = layer.train(training)(x)
    for sample, y in zip(x, found, strict=True):
        together = torch.cat([reference, sample[None]])
        expected = build("batch_norm", C).double()(together)[-1]
        torch.testing.assert_close(y, expected)


def test_after_the_first_batch_samples_are_independent_in_training_too():
    layer, _ = referred()
    x = torch.randn(4, C, 3, 3).double().requires_grad_()
    layer(x)[1].cos().sum().backward()
    touched = x.grad.abs().amax((1, 2, 3)) > 0
    assert touched.tolist() == [False, True, False, False]


def test_the_gradient_goes_through_the_samples_own_share():
    layer, _ = referred(batch=2)
    x = torch.randn(3, C, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer(x).sum().backward()
    scale = torch.rsqrt(layer.reference_var + layer.eps).view(1, -1, 1, 1)
    assert not torch.allclose(x.grad, scale.expand_as(x), rtol=0.05)


def test_evaluated_before_there_is_a_reference_it_is_instance_norm():
    x = torch.randn(4, C, 5, 5)
    layer = build("virtual_batch_norm", C).eval()
    torch.testing.assert_close(layer(x), build("instance_norm", C)(x))
    assert layer.reference_size == 0


def test_vectors_are_their_own_mean():
    layer = build("virtual_batch_norm", C).double()
    reference, x = torch.randn(6, C).double(), torch.randn(2, C).double()
    layer(reference)
    expected = [build("batch_norm", C).double()(torch.cat([reference, s[None]]))[-1] for s in x]
    torch.testing.assert_close(layer(x), torch.stack(expected))


def test_a_reference_without_variance_is_refused_and_not_kept():
    layer = build("virtual_batch_norm", C)
    with pytest.raises(ValueError, match="values per channel"):
        layer(torch.randn(1, C, 1, 1))
    assert layer.reference_size == 0


def test_a_mean_far_from_0_costs_no_digits():
    x = torch.randn(8, C, 6, 6) + 1000
    layer, exact = build("virtual_batch_norm", C), build("virtual_batch_norm", C).double()
    for _ in range(2):
        y, expected = layer(x), exact(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains_and_a_swap_leaves_the_reference_open(name):
    model = timm.create_model(name, num_classes=10)
    report = swap(model, "virtual_batch_norm")
    assert report.replaced == report.found
    sizes = [buffer for n, buffer in model.named_buffers() if n.endswith("reference_size")]
    assert len(sizes) == report.found
    assert all(size == 0 for size in sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in (4, 3):
        x, labels = torch.randn(batch, 3, 96, 96), torch.arange(batch)
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(size == 4 for size in sizes)
