"""Batch Renorm on the batch norm kernels, against its equations in float64 over several steps."""

from __future__ import annotations

import pytest
import torch
from batch_reference import per_channel
from torch import Tensor
from torch.nn import functional as F

from normbench.kernels.fused import batch_norm as kernels
from normbench.kernels.fused.batch_launches import Renorm

EPS, MOMENTUM = 1e-3, 0.2
RMAX, DMAX, HOLD, RFULL, DFULL = 3.0, 5.0, 1.0, 4.0, 3.0


def ramp(step: int, start: float, full: float) -> float:
    return min(max((step - start) / (full - start), 0.0), 1.0)


def paper(x, residual, w, b, mean, std, step) -> tuple[Tensor, Tensor, Tensor, bool]:
    """ReLU of the layer, the running values after it, and whether some r ≠ 1."""
    rmax = 1 + (RMAX - 1) * ramp(step, HOLD, RFULL)
    dmax = DMAX * ramp(step, HOLD, DFULL)
    dims = [0, 2, 3]
    m = x.mean(dims)
    s = torch.sqrt((x - per_channel(m, x)).square().mean(dims) + EPS)
    r = (s / std).clamp(1 / rmax, rmax).detach()
    d = ((m - mean) / std).clamp(-dmax, dmax).detach()
    y = (x - per_channel(m, x)) / per_channel(s, x) * per_channel(r, x) + per_channel(d, x)
    y = F.relu(y * per_channel(w, x) + per_channel(b, x) + residual)
    moved = [old + MOMENTUM * (new.detach() - old) for old, new in ((mean, m), (std, s))]
    return y, *moved, bool((r != 1).any())


FIRST, LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((4, 20, 7, 7), FIRST), ((4, 20, 7, 7), LAST), ((40, 3, 16, 16), FIRST),
        ((5, 20, 20, 20), LAST), ((130, 3, 16, 16), FIRST), ((10, 20, 16, 16), LAST),
    ],
    ids=str,
)  # fmt: skip
def test_six_steps_of_the_schedule(shape, memory_format) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    channels = shape[1]
    w, b = normal(channels) * 0.3 + 1, normal(channels)
    mean, var = torch.zeros(channels), torch.ones(channels) - EPS
    counters = [torch.tensor(0) for _ in range(3)]
    renorm = Renorm(*counters, (RMAX, DMAX, HOLD, RFULL, DFULL))
    wanted_mean, wanted_std, active = mean.double(), torch.ones(channels).double(), 0
    for step in range(6):
        x = (normal(*shape) * (1 + step) + 2 * step).contiguous(memory_format=memory_format)
        residual, g = normal(*shape), normal(*shape)
        ours = [t.clone().requires_grad_() for t in (x, residual, w, b)]
        theirs = [t.double().requires_grad_() for t in (x, residual, w, b)]
        y = kernels.batch_renorm(*ours, mean, var, renorm, MOMENTUM, EPS, 1)
        wanted, wanted_mean, wanted_std, changed = paper(*theirs, wanted_mean, wanted_std, step)
        g = torch.where(wanted.abs() < 1e-4, 0, g.double()).float()  # the kink of ReLU
        y.backward(g)
        wanted.backward(g.double())
        active += changed
        counters[0] += 1
        assert (y.double() - wanted).abs().max() < 1e-4
        for mine, other in zip(ours, theirs, strict=True):
            scale = other.grad.abs().max()
            assert (mine.grad.double() - other.grad).abs().max() < 3e-6 * max(scale, 10)
        torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-6, atol=1e-6)
        std = (var.double() + EPS).sqrt()
        torch.testing.assert_close(std, wanted_std, rtol=1e-6, atol=1e-6)
    assert int(counters[1]) == active
    assert 0 < active < 6  # in the hold r is 1; the count is of steps, not of programs
