"""Shapes, types, layouts and small batches."""

from __future__ import annotations

import pytest
import torch

SHAPES = [(6, 16), (6, 16, 5), (6, 16, 4, 3), (4, 16, 3, 2, 2)]
LAYOUTS = [((4, 16, 5, 3), torch.channels_last), ((2, 16, 3, 2, 2), torch.channels_last_3d)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
def test_shape_is_kept_or_the_case_is_refused_clearly(case, device, attempt, shape, training):
    x = torch.randn(shape, device=device)
    y = attempt(case.build(device=device).train(training), x)
    if y is not None:
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert torch.isfinite(y).all()


def test_images_are_defined_for_every_method(case, device):
    case.build(device=device)(torch.randn(2, 16, 7, 7, device=device))


@pytest.mark.parametrize("shape", [(16,), (2, 8, 3, 3), (2, 16, 2, 2, 2, 2)], ids=str)
def test_other_shapes_are_refused_with_what_was_expected(case, shape):
    with pytest.raises(ValueError, match="expects N,C"):
        case.build()(torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_are_normalized_by_float32_statistics(case, device, dtype):
    # a mean of ten deviations: statistics taken in half would be off by far more than rounding
    x = (torch.randn(8, 16, 6, 6, device=device) + 10).to(dtype)
    layer, reference = case.build(device=device), case.build(device=device)
    y, expected = layer(x), reference(x.float())
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_half_gradients_are_close_to_float32s(case, device):
    x = torch.randn(8, 16, 6, 6, device=device).bfloat16()
    half, full = x.clone().requires_grad_(), x.float().requires_grad_()
    probe = torch.randn(8, 16, 6, 6, device=device).bfloat16()
    (case.build(device=device)(half) * probe).sum().backward()
    (case.build(device=device)(full) * probe.float()).sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=0.02, atol=0.05)


def test_a_module_cast_to_half_trains(case, device):
    layer = case.build(device=device).bfloat16()
    x = torch.randn(8, 16, 4, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS, ids=["4d", "5d"])
def test_channels_last_is_kept_and_gives_the_same_values(case, device, shape, layout):
    x = torch.randn(shape, device=device)
    expected = case.build(device=device)(x)
    y = case.build(device=device)(x.contiguous(memory_format=layout))
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, expected)


def test_input_with_holes_gives_the_same_values(case, device):
    wide = torch.randn(4, 16, 5, 10, device=device)
    expected = case.build(device=device)(wide[..., ::2].contiguous())
    torch.testing.assert_close(case.build(device=device)(wide[..., ::2]), expected)


def test_a_batch_of_one_image_works_in_training_and_evaluation(case, device):
    layer = case.build(device=device)
    x = torch.randn(1, 16, 6, 6, device=device)
    assert torch.isfinite(layer(x)).all()
    assert torch.isfinite(layer.eval()(x)).all()


@pytest.mark.parametrize("shape", [(1, 16), (1, 16, 1, 1)], ids=str)
def test_one_value_per_channel_is_normalized_or_refused_clearly(case, attempt, shape):
    y = attempt(case.build(), torch.randn(shape))
    assert y is None or torch.isfinite(y).all()
