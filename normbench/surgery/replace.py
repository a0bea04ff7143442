"""Swap a method into every slot of a model.

The whole operation is tried and proved on a copy first, so a model that cannot be operated on is
left as it was. Nothing draws from the global random generators, and convolution weights are not
touched: with the same seed, all methods start from the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from normbench import registry
from normbench.registry import TrainingPlan
from normbench.surgery.example import candidates
from normbench.surgery.operate import Tally, operate
from normbench.surgery.proof import compare, prove, wake
from normbench.surgery.report import SurgeryError, SwapReport
from normbench.surgery.slots import Survey, duplicate, survey
from normbench.surgery.takeover import give_back


def swap(
    model: nn.Module, method: str, *, example_input: torch.Tensor | None = None, **params: Any
) -> SwapReport:
    """Put a method into every slot of a model, in place, and prove that it is there.

    Weight, bias, running statistics (where the method has use for them), eps and affine (where
    the method leaves them to the slot), device, dtype, training mode and `requires_grad` carry
    over; what a method has no place for is lost to a later swap. A method that owns its
    activation takes over the one that follows, if nothing else uses it; one whose layers can add
    a shortcut also the sum and the activation after it, where nothing stands between and the
    model proves to compute the same. A later swap gives activations back. Those that stay
    behind a slot are made out-of-place, since a method may return its input or keep its output.

    Args:
        model: built already, not yet compiled or fused; a timm model needs no `example_input`.
        method: a method of the catalogue.
        example_input: a batch of inputs, of which two samples are used; the report's
            `min_values_per_sample` belongs to its size.
        **params: the method's parameters.

    Returns:
        What was replaced, what was left, and why.

    Raises:
        SurgeryError: if the model has no slots, is fused already, or does not run afterwards. The
            model is unchanged then.
        RegistryError: for an unknown method or parameter; the model is unchanged.
    """
    label = registry.variant(method, params)
    with _random_state_kept(model):
        found = survey(model, example_input, give_back)
        fuse = registry.get(method).fuses_residual and any(
            sighting.after_sum.activation for sighting in found.sightings.values()
        )
        trial = _try_fused if fuse else _try_plain
        notes, fuse = trial(found, method, params, label, example_input)
        tally = operate(model, found, method, params, fuse=fuse)
    return _report(model, found, method, label, tally, notes)


def _try_plain(
    found: Survey, method: str, params: dict[str, Any], label: str, example: torch.Tensor | None
) -> tuple[list[str], bool]:
    """Prove the swap on the copy; the notes, and that nothing speaks against adding shortcuts."""
    operate(found.copy, found, method, params)
    return _proved(found, found.copy, method, label, example), True


def _try_fused(
    found: Survey, method: str, params: dict[str, Any], label: str, example: torch.Tensor | None
) -> tuple[list[str], bool]:
    """Prove it with layers that add shortcuts; without, where that is not the same model."""
    wake(found.copy, found.slots)
    reference = duplicate(found.copy)
    operate(reference, found, method, params, fuse=False)
    operate(found.copy, found, method, params)
    try:
        compare(found.copy, reference, found.example, label)
        return _proved(found, found.copy, method, label, example), True
    except SurgeryError as error:
        notes = _proved(found, reference, method, label, example)
        return [*notes, f"norm, sum and activation stay apart: {error}"], False


def _proved(
    found: Survey, model: nn.Module, method: str, label: str, example: torch.Tensor | None
) -> list[str]:
    _get_ready(model, method)
    return prove(model, found.slots, _examples(found, example), label)


def _get_ready(model: nn.Module, method: str) -> None:
    """Tell the copy's layers of a training to come: some refuse to train without."""
    if (prepare := registry.get(method).prepare) is not None:
        prepare(model, TrainingPlan(total_steps=1))


def _examples(found: Survey, example_input: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """The input watched, then larger ones if the choice is ours."""
    yield found.example
    for example in candidates(found.copy, example_input):
        same_depth = example.shape[1:2] == found.example.shape[1:2]
        if same_depth and example.numel() > found.example.numel():
            yield example


@contextmanager
def _random_state_kept(model: nn.Module) -> Iterator[None]:
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        yield


def _report(
    model: nn.Module, found: Survey, method: str, label: str, tally: Tally, notes: list[str]
) -> SwapReport:
    ran = [slot.values_per_sample for slot in found.slots if slot.values_per_sample]
    idle = [slot.name for slot in found.slots if not slot.values_per_sample]
    if idle:
        notes = [*notes, f"replaced, but did not run in the pass watched: {', '.join(idle)}"]
    device = found.example.device
    dtype = found.example.dtype if found.example.is_floating_point() else torch.float32
    if eager := registry.get(method).why_eager(device, dtype):
        kind = str(dtype).removeprefix("torch.")
        notes = [*notes, f"on {device} in {kind} the layers run their eager path: {eager}"]
    return SwapReport(
        method=method,
        variant=label,
        model=type(model).__name__,
        found=len(found.slots) + len(found.refused),
        replaced=tally.replaced,
        left=found.refused,
        paired_activations=sum(slot.activation is not None for slot in found.slots),
        consumed_activations=tally.consumed,
        unconsumed=tuple(tally.unconsumed),
        weight_side=tally.weight_side,
        slots=found.slots,
        min_values_per_sample=min(ran, default=0),
        input_shape=tuple(found.example.shape),
        eps=tuple(sorted(tally.eps)),
        forms=_forms(method, tally),
        notes=(*tally.notes, *notes),
    )


def _forms(method: str, tally: Tally) -> dict[str, int]:
    """Counts by form, the longest form first; none for a method that takes nothing over."""
    if not registry.get(method).consumes_activation:
        return {}
    longest_first = sorted(tally.forms, key=lambda form: (-form.count("+"), form))
    return {form: tally.forms[form] for form in longest_first}
