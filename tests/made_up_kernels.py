"""A method whose kernels exist in name only, for tests of what is said and kept of the path taken.

Registered only by who calls `register`: the catalogue of other tests does not have it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench import registry

NAME = "with_kernels"
NO_CUDA = "no CUDA device: the kernels need one"


def by_device(device: torch.device, dtype: torch.dtype) -> str:
    """Kernels for float32 and bfloat16 on CUDA."""
    if device.type != "cuda":
        return NO_CUDA
    return "" if dtype in (torch.float32, torch.bfloat16) else f"no kernels for {dtype}"


def runs(device: torch.device, dtype: torch.dtype) -> str:
    """Kernels for everything, everywhere."""
    return ""


def breaks(device: torch.device, dtype: torch.dtype) -> str:
    """No answer."""
    raise KeyError(device.type)


class Layer(nn.Module):
    """Scales and shifts."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        shape = (-1, *[1] * (x.ndim - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def register(fallback: registry.Fallback = by_device) -> str:
    """Enter the method, or enter it again with another answer; its name."""
    registry.register(NAME, title="Scale and shift", family="test", equation="y = x",
                      fallback=fallback)(Layer)  # fmt: skip
    return NAME
