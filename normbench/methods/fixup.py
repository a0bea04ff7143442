r"""Fixup initialization.

    y = x + b  at the slots,    y = m·x + b  at the one that ends a residual branch
    a convolution is given x + c

b, c and the multiplier m are one number each, 0, 0 and 1 at first. Nothing is normalized; instead
the weights start so that an update of the network does not grow with its depth. Of the L residual
branches with k convolutions each, the last convolution starts at 0, the others are scaled by
L^(−1/(2k−2)); the classifier starts at 0. All other weights are the model's own initialisation,
which the paper wants to be He's; no random number is drawn.

The weights are those of the convolution registered before each slot of a branch. How branches are
told is in `normbench.kernels.branches`. The classifier keeps its own bias and gets no scalar before
it. Every convolution is replaced by a `ShiftedConv`; surgery cannot undo that, nor the scaling.

A number before each convolution is the paper's rule; the authors' code has none before the first,
and the shortcut's is that of its block's first convolution. Their CIFAR code trains all these
numbers at a tenth of the learning rate, which is the optimizer's business and not built here.

Zhang, Dauphin & Ma, "Fixup Initialization: Residual Learning Without Normalization", ICLR 2019,
arXiv:1901.09321.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normbench.kernels.branches import preceding_convolution, residual_branches
from normbench.kernels.channels import ChannelNorm
from normbench.registry import Citation, UnsupportedError, register

if TYPE_CHECKING:
    from normbench.surgery.report import Slot


class ShiftedConv(nn.Module):
    """A convolution with a learned number added to its input, before padding."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to what the convolution gives."""
        y: Tensor = self.conv(x + self.shift.to(x.dtype))
        return y


def shift_input(conv: nn.Module, **_: object) -> ShiftedConv:
    """The replacement of a convolution, with its device and type."""
    weight = conv.weight
    assert isinstance(weight, Tensor)
    replacement = ShiftedConv(conv).to(device=weight.device, dtype=weight.dtype)
    replacement.shift.requires_grad_(weight.requires_grad)  # frozen as the convolution
    return replacement


def initialize(model: nn.Module, slots: tuple[Slot, ...]) -> None:
    """Scales and zeroes weights, and keeps multipliers where residual branches end.

    Raises:
        UnsupportedError: if no residual branch can be told, or not which convolutions are in one.
    """
    branches = residual_branches(model, slots, "fixup")
    layers = {slot.name: _layer(model, slot.name) for slot in slots}
    chains = [[_convolution(model, name) for name in branch.slots] for branch in branches]
    with torch.no_grad():
        for *inner, last in chains:
            for conv in inner:
                conv.weight.mul_(len(branches) ** (-1 / (2 * len(inner))))
            _zero(last)
        if (classifier := _classifier(model)) is not None:
            _zero(classifier)
    ends = {branch.slots[-1] for branch in branches}
    for name, layer in layers.items():
        if layer is not None and name not in ends:
            layer.multiplier = None


def _layer(model: nn.Module, name: str) -> Fixup | None:
    found = (m for m in model.get_submodule(name).modules() if isinstance(m, Fixup))
    return next(found, None)


def _convolution(model: nn.Module, slot: str) -> Any:
    conv = preceding_convolution(model, slot)
    if conv is None:
        raise UnsupportedError(f"fixup cannot tell which convolution {slot} follows")
    return conv


def _classifier(model: nn.Module) -> nn.Module | None:
    """What timm calls the classifier; in other models the last linear layer."""
    timms = getattr(model, "get_classifier", None)
    if callable(timms):
        found = timms()
        return found if isinstance(getattr(found, "weight", None), Tensor) else None
    return next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)


def _zero(module: Any) -> None:
    module.weight.zero_()
    if module.bias is not None:
        module.bias.zero_()


@register(
    "fixup",
    title="Fixup Initialization",
    family="none",
    equation=r"y = m\,x+b,\quad W_{l} = L^{-1/(2k-2)}\,W_{l}^{0},\ W_{k} = 0"
    r"\ \mathrm{in\ a\ branch\ of}\ k\ \mathrm{layers}",
    citation=Citation(
        "Fixup Initialization: Residual Learning Without Normalization",
        ("Zhang, Hongyi", "Dauphin, Yann N.", "Ma, Tengyu"),
        2019,
        "International Conference on Learning Representations (ICLR)",
        "1901.09321",
    ),
    weight=shift_input,
    model=initialize,
    policy="Defined for every input. A model in which no residual branch can be told is refused, "
    "as by skip_init, and one in which no convolution stands before a slot of a branch. Models "
    "without a classifier have none zeroed; weights outside of branches stay as they are.",
)
class Fixup(ChannelNorm):
    """Numbers that scale and shift, and weights rescaled by depth; no statistics."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__(num_features, None, False)
        self.multiplier: nn.Parameter | None = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        y = x if self.multiplier is None else x * self.multiplier
        return (y + self.shift).to(x.dtype)

    def extra_repr(self) -> str:
        """There is no eps to show."""
        return f"{self.num_features}, multiplier={self.multiplier is not None}"
