"""Find the slots of a model: where normalizations stand, and what follows them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from normbench.surgery.example import candidates
from normbench.surgery.kinds import Parts, Refusal, take_apart, walk
from normbench.surgery.report import FUSED, Slot, SurgeryError
from normbench.surgery.watch import Sighting, watch


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything known about a model before it is operated on.

    Attributes:
        slots: in the order of execution.
        sightings: by slot, which activation follows it and what keeps it from moving.
        refused: path and reason of normalizations that cannot be replaced.
        example: the input that was watched.
        copy: the copy of the model that was watched, in evaluation mode.
    """

    slots: tuple[Slot, ...]
    sightings: dict[str, Sighting]
    refused: tuple[tuple[str, str], ...]
    example: torch.Tensor
    copy: nn.Module


def find_slots(model: nn.Module, example_input: torch.Tensor | None = None) -> list[Slot]:
    """The slots of a model, in the order of execution.

    One forward pass of a copy is watched, so the model itself is not disturbed.

    Args:
        model: any model; a timm model needs no `example_input`.
        example_input: a batch of inputs; its first two samples are used. `values_per_sample`
            belongs to this input's size. Without one, a small size is tried before the one the
            model is configured for.

    Raises:
        SurgeryError: if the model has no slots, does not run, or is fused or compiled already.
    """
    return list(survey(model, example_input).slots)


def survey(
    model: nn.Module,
    example_input: torch.Tensor | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
) -> Survey:
    """Find slots and watch what follows them, on a copy.

    Args:
        model: as `find_slots`.
        example_input: as `find_slots`.
        prepare: what to do to the copy first.

    Raises:
        SurgeryError: as `find_slots`.
    """
    refuse_compiled(model)
    parts, refused = find_parts(model)
    if not parts and not refused:
        raise SurgeryError(_no_slots(model))
    refuse_fused(model)
    twin = duplicate(model)
    if prepare is not None:
        prepare(twin)
        parts, refused = find_parts(twin)
    example, sightings = _watch_smallest(twin, list(parts), example_input)
    slots = sorted(
        (_slot(name, parts[name], sightings[name]) for name in parts), key=lambda slot: slot.order
    )
    return Survey(tuple(slots), sightings, tuple(refused), example, twin)


def find_parts(model: nn.Module) -> tuple[dict[str, Parts], list[tuple[str, str]]]:
    """Normalizations by path, each module once, and path and reason of those refused."""
    if take_apart(model) is not None:
        raise SurgeryError(
            f"{type(model).__name__} is itself a normalization: use normbench.build instead"
        )
    parts: dict[str, Parts] = {}
    refused: list[tuple[str, str]] = []
    seen: set[int] = set()
    for name, module in walk(model):
        found = take_apart(module)
        if found is None or id(module) in seen:
            continue
        seen.add(id(module))
        if isinstance(found, Refusal):
            refused.append((name, f"{found.kind}: {found.reason}"))
        else:
            parts[name] = found
    return parts, refused


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model that is not made of its own modules any more.

    Raises:
        SurgeryError: for the result of `torch.compile` or `torch.jit`.
    """
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise SurgeryError(f"{type(model).__name__} is compiled already: swap first, then compile")


def refuse_fused(model: nn.Module) -> None:
    """Refuse a model with re-parametrised blocks: their BatchNorm is inside a convolution.

    Raises:
        SurgeryError: naming the first such block.
    """
    for name, module in model.named_modules():
        folded = isinstance(getattr(module, "reparam_conv", None), nn.Module)
        deployed = any(
            getattr(module, flag, False) is True for flag in ("infer_mode", "inference_mode")
        )
        if folded or deployed:
            raise SurgeryError(
                f"{type(model).__name__} is re-parametrised at {name!r} "
                f"({type(module).__name__}): its BatchNorm is folded into a convolution; build "
                "the model without fusing and swap first"
            )


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        SurgeryError: if the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise SurgeryError(
            f"{type(model).__name__} cannot be copied, which surgery needs in order to try its "
            f"work before it touches the model: {error}"
        ) from error


def _watch_smallest(
    model: nn.Module, names: list[str], example_input: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, Sighting]]:
    found = {
        name: (model.get_submodule(name), take_apart(model.get_submodule(name))) for name in names
    }
    slots = {name: (m, p.num_features) for name, (m, p) in found.items() if isinstance(p, Parts)}
    outside = list(walk(model))
    problem: Exception | None = None
    try:
        for example in candidates(model, example_input):
            try:
                return example, watch(model, slots, outside, example)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a model raises at a size it was not built for
                problem, shape = error, tuple(example.shape)
        raise SurgeryError(
            f"{type(model).__name__} does not run on an input of shape {shape}: {problem}"
            + ("; pass example_input" if example_input is None else "")
        ) from problem
    finally:
        problem = None  # it holds this frame, and so the models of all that called it


def _slot(name: str, parts: Parts, sighting: Sighting) -> Slot:
    weight = getattr(parts.core, "weight", None)
    return Slot(
        name=name,
        kind=parts.kind,
        num_features=parts.num_features,
        eps=parts.eps,
        activation=FUSED if parts.act is not None else sighting.direct.activation,
        zero_init=weight is not None and not weight.detach().any().item(),
        values_per_sample=sighting.values_per_sample,
        order=sighting.order,
    )


def _no_slots(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} has no normalization slots: looked for BatchNorm, GroupNorm, "
        "InstanceNorm, LayerNorm, RMSNorm, frozen BatchNorm, EvoNorm, filter response norm and "
        "layers of normbench"
    )
