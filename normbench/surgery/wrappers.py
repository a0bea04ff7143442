"""The two small modules surgery may put around a method: channels last, and norm-drop-act."""

from __future__ import annotations

import torch
from torch import nn


class ChannelsLast(nn.Module):
    """Give an N,C,* module an N,*,C input, as a LayerNorm of a transformer receives.

    The output is contiguous, since what follows a LayerNorm may call `view` on it.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map N,*,C to N,*,C through the N,C,* module."""
        y: torch.Tensor = self.norm(x.movedim(-1, 1))
        return y.movedim(1, -1).contiguous()


class NormAct(nn.Module):
    """act(drop(norm(x))), the order of timm's BatchNormAct2d."""

    def __init__(self, norm: nn.Module, drop: nn.Module | None, act: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm
        self.drop = drop if drop is not None else nn.Identity()
        self.act = act if act is not None else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize, then drop, then activate."""
        y: torch.Tensor = self.act(self.drop(self.norm(x)))
        return y
