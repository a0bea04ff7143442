r"""SkipInit.

    y = x + b  at the slots,    y = alpha·(x + b)  at the one that ends a residual branch

alpha is one number, 0 at first, so that a deep residual network starts as its shortcuts; b is a
bias per channel, which the convolutions of normalized networks lack. Nothing is normalized.

Surgery sets alpha to 0 where residual branches end and takes it away from all other slots; a layer
built on its own has an alpha of 1. How branches are told is in `normbench.kernels.branches`.

De & Smith, "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep
Networks", NeurIPS 2020, arXiv:2002.10444.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from normbench.kernels.branches import residual_branches
from normbench.kernels.channels import ChannelNorm
from normbench.registry import Citation, register

if TYPE_CHECKING:
    from normbench.surgery.report import Slot


def close_branches(model: nn.Module, slots: tuple[Slot, ...]) -> None:
    """Zeroes alpha where a residual branch ends and removes it elsewhere.

    Raises:
        UnsupportedError: if no residual branch can be told.
    """
    ends = {branch.slots[-1] for branch in residual_branches(model, slots, "skip_init")}
    for slot in slots:
        for layer in model.get_submodule(slot.name).modules():
            if isinstance(layer, SkipInit):
                layer.close(ends_branch=slot.name in ends)


@register(
    "skip_init",
    title="SkipInit",
    family="none",
    equation=r"y = \alpha\,(x+b),\quad \alpha=0\ \mathrm{at\ first\ where\ a\ residual\ branch"
    r"\ ends,\ else}\ 1",
    citation=Citation(
        "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
        ("De, Soham", "Smith, Samuel L."),
        2020,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "2002.10444",
    ),
    model=close_branches,
    policy="Defined for every input. A model in which no residual branch can be told is refused: "
    "branches end at a slot with a gamma of zeros, or at the last slot of a block with `has_skip` "
    "or of a BasicBlock or Bottleneck.",
)
class SkipInit(ChannelNorm):
    """A bias per channel, and one number in front of each residual branch; no statistics."""

    multiplier: nn.Parameter | None

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__(num_features, None, True)
        self.weight = None
        self.multiplier = nn.Parameter(torch.ones(1))

    def close(self, *, ends_branch: bool) -> None:
        """Makes this the layer that ends a residual branch, or one that does not."""
        if ends_branch and self.multiplier is not None:
            nn.init.zeros_(self.multiplier)
        else:
            self.multiplier = None

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        assert self.bias is not None
        y = x + self.bias.view(1, -1, *[1] * (x.dim() - 2))
        return (y if self.multiplier is None else y * self.multiplier).to(x.dtype)

    def extra_repr(self) -> str:
        """There is no eps to show."""
        return f"{self.num_features}, multiplier={self.multiplier is not None}"
