"""Every registered method on CUDA against itself on the CPU in float64."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import normbench

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: `make gpu` runs these on one"
)

SHAPES = [(8, 64, 14, 14), (2, 48, 7, 7), (16, 32, 1, 1)]
"""Usual; no divisor of 32 and few values; a single value per sample and channel."""


def _pair(method: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """The layer in float64 on the CPU and, with the same state, in float32 on CUDA."""
    reference = normbench.build(method, channels, act=nn.ReLU()).double().train()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, mean=1.0, std=0.3)
    layer = normbench.build(method, channels, act=nn.ReLU())
    layer.load_state_dict(reference.state_dict())
    return reference, layer.cuda().train()


def _forward_backward(layer: nn.Module, x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", normbench.list_methods())
def test_cuda_agrees_with_float64(
    method: str, shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    reference, layer = _pair(method, shape[1])
    x = torch.randn(shape, dtype=torch.float64) * 2 + 0.5
    weights = torch.randn(shape, dtype=torch.float64)
    try:
        expected = _forward_backward(reference, x, weights)
    except ValueError as refusal:  # this shape has no statistics: CUDA must say the same
        with pytest.raises(ValueError, match=re.escape(str(refusal))):
            layer(x.float().cuda())
        return
    on_device = x.float().cuda().contiguous(memory_format=memory_format)
    found = _forward_backward(layer, on_device, weights.float().cuda())
    for name, want, got in zip(["output", "input gradient"], expected, found, strict=False):
        torch.testing.assert_close(
            got.double().cpu(), want, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    for want, got in zip(expected[2:], found[2:], strict=True):
        scale = float(want.abs().max()) + 1.0
        torch.testing.assert_close(got.double().cpu() / scale, want / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", normbench.list_methods())
def test_channels_last_is_kept(method: str) -> None:
    layer = normbench.build(method, 64, act=nn.ReLU()).cuda()
    x = torch.randn(8, 64, 14, 14, device="cuda").contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", normbench.list_methods())
def test_autocast_stays_close_and_finite(method: str, dtype: torch.dtype) -> None:
    reference, layer = _pair(method, 64)
    x = (torch.randn(8, 64, 14, 14) * 30).to(dtype)  # squares overflow in float16 when summed
    expected = reference(x.double())
    with torch.autocast("cuda", dtype):
        y = layer(x.cuda().requires_grad_())  # `none` has no parameters to ask
        y.float().square().mean().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    step = torch.finfo(dtype).eps * 8
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(
        y.detach().double().cpu(), expected.detach(), rtol=step, atol=step * scale
    )


@pytest.mark.parametrize("method", normbench.list_methods())
def test_state_travels_between_devices(method: str) -> None:
    layer = normbench.build(method, 16, act=nn.ReLU()).cuda().train()
    layer(torch.randn(4, 16, 5, 5, device="cuda"))
    copy = normbench.build(method, 16, act=nn.ReLU())
    copy.load_state_dict(layer.state_dict())
    x = torch.randn(4, 16, 5, 5)
    with torch.no_grad():
        on_cpu, on_cuda = copy.eval()(x), layer.eval()(x.cuda()).cpu()
    torch.testing.assert_close(on_cpu, on_cuda, rtol=1e-4, atol=1e-4)
