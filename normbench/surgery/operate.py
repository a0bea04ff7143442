"""The operation proper: replace every slot of a surveyed model, count what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normbench import registry
from normbench.surgery import weights
from normbench.surgery.carry import make_out_of_place, new_layer, slot_params
from normbench.surgery.deferred import defer
from normbench.surgery.kinds import Parts, take_apart
from normbench.surgery.places import places, put
from normbench.surgery.report import FUSED, Slot, SurgeryError
from normbench.surgery.slots import Survey
from normbench.surgery.takeover import Taking, give_back, take
from normbench.surgery.wrappers import ChannelsLast, NormAct


@dataclass(slots=True)
class Tally:
    """What one operation did."""

    replaced: int = 0
    consumed: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    weight_side: int = 0
    unconsumed: list[tuple[str, str]] = field(default_factory=list)
    eps: set[float] = field(default_factory=set)
    remarks: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def operate(
    model: nn.Module, found: Survey, method: str, params: Mapping[str, Any], *, fuse: bool = True
) -> Tally:
    """Replace every slot and apply the weight side and the model side.

    Args:
        model: the surveyed model or its copy.
        found: the survey.
        method: catalogue name.
        params: the method's parameters as given.
        fuse: whether layers may add shortcuts, if the method's can.
    """
    tally, info = Tally(), registry.get(method)
    if undone := weights.undo(model):
        tally.notes.append(f"{undone} convolutions got their own weights back first")
    give_back(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    takeover = take(model, found, info, fuse=fuse)
    for slot in found.slots:
        _replace(model, slot, takeover.takings.get(slot.name), method, params, tally, like)
    tally.unconsumed = [
        (slot.name, takeover.kept[slot.name]) for slot in found.slots if slot.name in takeover.kept
    ]
    for reason, count in takeover.apart.items():
        tally.remarks[f"norm, sum and activation stay apart: {reason}"] = count
    resolved = registry.resolve_params(method, params)
    tally.weight_side, notes = weights.take_over(model, info, resolved)
    tally.notes += notes
    if info.model is not None:
        info.model(model, found.slots, **resolved)
    tally.notes += [
        f"{text} ({count} slot{'s' * (count > 1)})" for text, count in sorted(tally.remarks.items())
    ]
    return tally


def _replace(
    model: nn.Module,
    slot: Slot,
    taking: Taking | None,
    method: str,
    given: Mapping[str, Any],
    tally: Tally,
    like: torch.Tensor | None,
) -> None:
    old = model.get_submodule(slot.name)
    parts = take_apart(old)
    if not isinstance(parts, Parts):
        raise SurgeryError(f"{slot.name} was a {slot.kind} when the model was surveyed, not now")
    act = _activation(model, slot, parts) if taking is None else taking.act
    if act is not None:
        make_out_of_place(act)
    params = slot_params(method, given, parts)
    layer = new_layer(method, params, parts, None if taking is None else taking.act, like)
    if taking is not None:
        layer.normbench_home = taking.home  # type: ignore[assignment]
        if taking.after_sum:
            defer(layer)
    put(model, places(model, old), _dressed(layer, parts, taking is not None))
    _count(tally, parts, taking, params, layer)


def _activation(model: nn.Module, slot: Slot, parts: Parts) -> nn.Module | None:
    if slot.activation is None or slot.activation == FUSED:
        return parts.act
    return model.get_submodule(slot.activation)


def _dressed(layer: nn.Module, parts: Parts, taken: bool) -> nn.Module:
    """The layer with what has to stay around it; the bare layer where nothing does."""
    norm = ChannelsLast(layer) if parts.channels_last else layer
    act = None if taken else parts.act
    if parts.drop is None and act is None:
        return norm
    return NormAct(norm, parts.drop, act).train(parts.core.training)


def _count(
    tally: Tally, parts: Parts, taking: Taking | None, params: Mapping[str, Any], layer: nn.Module
) -> None:
    tally.replaced += 1
    tally.consumed += taking is not None
    tally.forms["norm" if taking is None else taking.form] += 1
    if "eps" in params:
        eps = getattr(layer, "eps", None) if params["eps"] is None else params["eps"]
        tally.eps |= {float(eps)} if eps is not None else set()
    if parts.note:
        tally.remarks[parts.note] += 1
    if taking is not None and parts.drop is not None:
        tally.remarks["dropout stands after the activation taken over, not before"] += 1
    asked, groups = params.get("groups"), getattr(layer, "groups", None)
    if isinstance(groups, int) and asked is not None and groups != asked:
        tally.remarks[f"groups={asked} does not divide the channels; groups={groups}"] += 1
