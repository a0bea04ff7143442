"""Prove a swap on a copy of the model: it runs forward and backward, through the new layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normbench.surgery.kinds import Parts, take_apart, walk
from normbench.surgery.report import Slot, SurgeryError

EVALUATION_ONLY = "proved in evaluation only"
"""How the note begins of a swap whose statistics do not exist in training."""

SAME = 1e-3
"""Difference to the largest output up to which two float32 outputs count as the same."""

WOKEN = 0.5
"""For a gamma of zero: norms then matter, and a deep residual network does not blow up."""

NO_STATISTICS = re.compile(r"values? per channel")
"""What the message says of a method that refuses an input because a statistic does not exist."""


def prove(
    model: nn.Module, slots: Iterable[Slot], examples: Iterable[torch.Tensor], label: str
) -> list[str]:
    """Run a swapped model forward and backward in training mode and see every new layer run.

    The model is used up (gradients, buffers): give a copy. Where a statistic does not exist in
    training at any of the inputs, evaluation mode is proved instead, with a note.

    Args:
        model: the swapped copy.
        slots: of the model before the swap; those that ran must run again.
        examples: inputs; later ones are asked for only where statistics do not exist.
        label: the variant, for messages.

    Raises:
        SurgeryError: if BatchNorm remains, the model does not run, or a new layer is not reached.
    """
    left = [name for name, module in walk(model) if isinstance(module, _BatchNorm)]
    if left:
        raise SurgeryError(f"{type(model).__name__}: BatchNorm remains at {', '.join(left)}")
    expected = {slot.name for slot in slots if slot.values_per_sample}
    tried: list[torch.Tensor] = []
    problem: ValueError | None = None
    try:
        for example in examples:
            tried.append(example)
            ran, problem = _attempt(model.train(), expected, example, label)
            if problem is None:
                return _all_reached(model, expected, ran, [])
        note = f"{EVALUATION_ONLY}, since in training {problem}"
        for example in tried:
            ran, problem = _attempt(model.eval(), expected, example, label)
            if problem is None:
                return _all_reached(model, expected, ran, [note])
        raise _failed(model, label, tried[-1], problem) from problem
    finally:
        problem = None  # it holds this frame, and so the model


def _all_reached(
    model: nn.Module, expected: set[str], ran: set[str], notes: list[str]
) -> list[str]:
    if missed := sorted(expected - ran):
        raise SurgeryError(
            f"{type(model).__name__}: the new layers at {', '.join(missed)} are not reached: the "
            "model holds on to the old ones in some other way"
        )
    return notes


def _attempt(
    model: nn.Module, expected: set[str], example: torch.Tensor, label: str
) -> tuple[set[str], ValueError | None]:
    """What ran, and the error where a statistic does not exist at this input."""
    try:
        with torch.enable_grad():
            return _run(model, expected, example), None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model does that meets layers it was not written for
        if isinstance(error, ValueError) and NO_STATISTICS.search(str(error)):
            return set(), error
        raise _failed(model, label, example, error) from error


def _run(model: nn.Module, names: set[str], example: torch.Tensor) -> set[str]:
    """Forward and backward; the names among `names` that ran."""
    ran: set[str] = set()
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name))
        for name in names
    ]
    try:
        outputs = [t for t in tensors(model(example)) if t.requires_grad]
    finally:
        for handle in handles:
            handle.remove()
    if outputs:
        torch.stack([t.float().square().mean() for t in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    return ran


def _failed(
    model: nn.Module, label: str, example: torch.Tensor, error: Exception | None
) -> SurgeryError:
    return SurgeryError(
        f"{type(model).__name__} does not run with {label} on an input of shape "
        f"{tuple(example.shape)}: {error}"
    )


def wake(model: nn.Module, slots: Iterable[Slot]) -> None:
    """Give every gamma that is all zeros another value, lest a norm's output not matter.

    Args:
        model: a copy, its slots not yet replaced.
        slots: of the model.
    """
    for slot in slots:
        parts = take_apart(model.get_submodule(slot.name))
        if slot.zero_init and isinstance(parts, Parts):
            nn.init.constant_(cast(nn.Parameter, parts.core.weight), WOKEN)


def compare(model: nn.Module, reference: nn.Module, example: torch.Tensor, label: str) -> None:
    """See that two copies of a model give the same output in evaluation, up to rounding.

    Args:
        model: the copy whose layers do more.
        reference: the copy whose layers do less.
        example: the input.
        label: the variant, for messages.

    Raises:
        SurgeryError: if the outputs differ by more than 0.1% of the largest, in half precision by
            more than the root of its rounding, or if a copy does not run.
    """
    tolerance = max(SAME, *(_rounding(p) ** 0.5 for p in reference.parameters()))
    outputs = [_outputs(copy.eval(), example, label) for copy in (model, reference)]
    for ours, theirs in zip(*outputs, strict=True):
        scale = float(theirs.nan_to_num(0, 0, 0).abs().max())
        if not torch.allclose(ours, theirs, rtol=0, atol=tolerance * scale, equal_nan=True):
            raise SurgeryError(
                f"with {label} {type(model).__name__} computes something else where layers add "
                f"the shortcut: outputs differ by {(ours - theirs).abs().max():.1e}, and are "
                f"{scale:.1e} at most"
            )


def _rounding(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _outputs(model: nn.Module, example: torch.Tensor, label: str) -> list[torch.Tensor]:
    """What a model gives in float64, always with the same random numbers."""
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            outputs = list(tensors(model(example)))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a norm that waits meets in a block that does not add
        raise _failed(model, label, example, error) from error
    return [output.double() for output in outputs if output.is_floating_point() and output.numel()]


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """Tensors among outputs, looking into tuples, lists and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors(value)
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
