"""Residual branches of a model, told from its slots and blocks: where each begins and ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from normbench.registry import UnsupportedError

if TYPE_CHECKING:
    from normbench.surgery.report import Slot

SHORTCUTS = ("downsample", "shortcut")
"""Names under which timm's and torchvision's blocks keep what stands beside the branch."""

NAMED = ("BasicBlock", "Bottleneck")
"""Names of classes that add their shortcut to the output of their last slot."""


@dataclass(frozen=True, slots=True)
class Branch:
    """The residual branch f of a block x + f(x).

    Attributes:
        block: path of the block.
        slots: paths of the branch's slots in the order of execution; the last one ends it.
    """

    block: str
    slots: tuple[str, ...]


def residual_branches(model: nn.Module, slots: Iterable[Slot], method: str) -> list[Branch]:
    """The residual branches in the order of execution.

    A branch is told by a slot whose gamma is all zeros, as timm initialises the last one of a
    branch; by a block's `has_skip`, as in timm's EfficientNets; or by a block of a class called
    BasicBlock or Bottleneck that has a `downsample`, as the ResNets of torchvision do. Where an
    activation follows the last slot, as in blocks that normalize first, there is none: a branch
    scaled by 0 there would stay at 0, where ReLU has no gradient.

    Args:
        model: with its slots swapped already.
        slots: as surgery found them before.
        method: for the message.

    Raises:
        UnsupportedError: if there are none.
    """
    ran = sorted((s for s in slots if s.values_per_sample), key=lambda slot: slot.order)
    names = [slot.name for slot in ran]
    blocks = {path for path, module in model.named_modules() if _is_residual(module)}
    for slot in ran:
        if slot.zero_init and not any(_inside(slot.name, block) for block in blocks):
            blocks.add(_block_around(slot.name, names))
    found = {block: _branch(block, ran) for block in blocks}
    branches = [Branch(block, inner) for block, inner in found.items() if inner]
    if not branches:
        raise UnsupportedError(
            f"{method} needs residual branches, and none can be told in {type(model).__name__}: no "
            "slot has a gamma of zeros (timm's zero_init_last), no block says has_skip, and none "
            "is a BasicBlock or Bottleneck with a downsample"
        )
    return sorted(branches, key=lambda branch: names.index(branch.slots[-1]))


def _is_residual(module: nn.Module) -> bool:
    named = type(module).__name__ in NAMED and hasattr(module, "downsample")
    return named or getattr(module, "has_skip", None) is True


def _inside(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


def _block_around(end: str, names: list[str]) -> str:
    """The smallest module around a slot that holds another slot too; the slot's parent if none."""
    parts = end.split(".")
    for length in range(len(parts) - 1, 0, -1):
        block = ".".join(parts[:length])
        if sum(_inside(name, block) for name in names) > 1:
            return block
    return ".".join(parts[:-1])


def _branch(block: str, ran: list[Slot]) -> tuple[str, ...]:
    """Slots of the block beside its shortcut, up to the zero-initialised one if there is one."""
    inner = [
        slot
        for slot in ran
        if _inside(slot.name, block)
        and not set(SHORTCUTS) & set(slot.name.removeprefix(f"{block}.").split("."))
    ]
    last = max((i for i, slot in enumerate(inner) if slot.zero_init), default=len(inner) - 1)
    if not inner or inner[last].activation is not None:
        return ()
    return tuple(slot.name for slot in inner[: last + 1])


def preceding_convolution(model: nn.Module, slot: str) -> nn.Module | None:
    """The convolution registered last before a slot, if its outputs are the slot's channels."""
    before: nn.Module | None = None
    for path, module in model.named_modules():
        if path == slot:
            break
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            before = module
    channels = [m.num_features for m in model.get_submodule(slot).modules() if _counts(m)]
    return before if before is not None and before.out_channels in channels else None


def _counts(module: nn.Module) -> bool:
    return isinstance(getattr(module, "num_features", None), int)
