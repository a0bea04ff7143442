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
from normbench.surgery.proof import prove
from normbench.surgery.report import SwapReport
from normbench.surgery.slots import Survey, survey


def swap(
    model: nn.Module, method: str, *, example_input: torch.Tensor | None = None, **params: Any
) -> SwapReport:
    """Put a method into every slot of a model, in place, and prove that it is there.

    Weight, bias, running statistics (where the method has use for them), eps and affine (where
    the method leaves them to the slot), device, dtype, training mode and `requires_grad` carry
    over; what a method has no place for is lost to a later swap. A method that owns its
    activation takes over the one that follows, if nothing else uses it. Activations that stay
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
        found = survey(model, example_input)
        operate(found.copy, found, method, params)
        _get_ready(found.copy, method)
        notes = prove(found.copy, found.slots, _examples(found, example_input), label)
        tally = operate(model, found, method, params)
    return _report(model, found, method, label, tally, notes)


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
        notes=(*tally.notes, *notes),
    )
