"""The weight side: hand every convolution to a method that standardizes or normalizes weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from timm.layers import std_conv
from torch import nn
from torch.nn.utils import parametrize

from normbench.registry import MethodInfo
from normbench.surgery.kinds import walk
from normbench.surgery.places import places, put
from normbench.surgery.report import SurgeryError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
STANDARDIZED = tuple(
    value for name, value in vars(std_conv).items() if name.endswith(("StdConv2d", "StdConv2dSame"))
)


@dataclass(frozen=True, slots=True)
class WeightMark:
    """Written as `normbench_weight` on a convolution that a method's weight side took over."""

    method: str


def undo(model: nn.Module) -> int:
    """Give convolutions their own weights back that an earlier swap took over; how many.

    Raises:
        SurgeryError: if an earlier weight side was no parametrization, so that there is no way
            back.
    """
    taken = {name: m for name, m in walk(model) if isinstance(_mark(m), WeightMark)}
    for name, conv in taken.items():
        if not parametrize.is_parametrized(conv, "weight"):
            raise SurgeryError(
                f"{name} was replaced by the weight side of {_mark(conv).method!r}, which cannot "
                "be undone: build the model anew and swap that"
            )
        _give_back(conv)
    return len(taken)


def _give_back(conv: nn.Module) -> None:
    """Remove the parametrization of a convolution's weight, and with it our mark.

    torch's `remove_parametrizations` also deletes the property from the class, which a deep copy
    shares: it would break the original while we operate on its copy.
    """
    original = cast(Any, conv).parametrizations.weight.original
    del conv._modules["parametrizations"]
    conv.__class__ = type(conv).__bases__[0]
    conv._parameters = {"weight": original, **conv._parameters}
    del conv.normbench_weight


def take_over(
    model: nn.Module, info: MethodInfo, params: Mapping[str, Any]
) -> tuple[int, list[str]]:
    """Apply the method's weight side to every convolution with a fan-in above one.

    Returns:
        How many were taken over, and notes on those left.

    Raises:
        SurgeryError: if a convolution is parametrized by somebody else.
    """
    if info.weight is None:
        return 0, []
    accepted = _accepted(info.weight, params)
    done, standardized = 0, 0
    for name, conv in _convolutions(model).items():
        if isinstance(conv, STANDARDIZED):
            standardized += 1
            continue
        if parametrize.is_parametrized(conv, "weight") or "weight" not in conv._parameters:
            raise SurgeryError(
                f"{name}: its weight is parametrized already, so {info.name!r} cannot take it over"
            )
        replacement = info.weight(conv, **accepted)
        target = conv if replacement is None else replacement
        if replacement is not None:
            replacement.train(conv.training)
            put(model, places(model, conv), replacement)
        target.normbench_weight = WeightMark(info.name)  # type: ignore[assignment]
        done += 1
    notes = [f"{standardized} convolutions standardize their weights already and were left"]
    return done, notes if standardized else []


def _accepted(weight: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the method's parameters that its weight side asks for by name."""
    asked = inspect.signature(weight).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in asked):
        return dict(params)
    return {p.name: params[p.name] for p in asked if p.name in params}


def _convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions outside of normalizations by path, each once, whose filters have > 1 weight."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in walk(model):
        if isinstance(module, CONVOLUTIONS):
            fan_in = module.in_channels // module.groups * math.prod(module.kernel_size)
            if fan_in > 1:
                found.setdefault(id(module), (name, module))
    return dict(found.values())


def _mark(module: nn.Module) -> Any:
    return getattr(module, "normbench_weight", None)
