"""Build the new layer of one slot and carry over what the old one knew."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from normbench import registry
from normbench.surgery.kinds import Mark, Parts

INHERITED = ("eps", "affine")
"""Parameters that a slot decides where the method's default is None and none is given."""


def slot_params(method: str, given: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """The method's parameters at one slot: as given, with `eps` and `affine` inherited."""
    params = registry.resolve_params(method, given)
    of_slot = {"eps": parts.eps, "affine": parts.affine}
    for name in INHERITED:
        if name in params and params[name] is None and of_slot[name] is not None:
            params[name] = of_slot[name]
    return params


def new_layer(
    method: str,
    params: Mapping[str, Any],
    parts: Parts,
    act: nn.Module | None,
    like: torch.Tensor | None,
) -> nn.Module:
    """The method's layer for one slot, with the slot's weights, statistics, dtype and device.

    Args:
        method: catalogue name.
        params: from `slot_params`.
        parts: the normalization that stands there now.
        act: the activation to take over, if the method does that.
        like: dtype and device where the normalization itself has no tensors.
    """
    layer = registry.build(method, parts.num_features, act=act, **params)
    tensors = chain(parts.core.parameters(), parts.core.buffers())
    like = next((t for t in tensors if t.is_floating_point()), like)
    if like is not None:
        layer.to(device=like.device, dtype=like.dtype)
    _load(parts.core, layer)
    _carry_flags(parts.core, layer)
    layer.normbench_mark = Mark(method, parts.num_features, parts.eps, parts.affine)  # type: ignore[assignment]
    return layer


def make_out_of_place(act: nn.Module) -> None:
    """Keep an activation from overwriting its input.

    A method may need its own output for backward, or return its very input (`none`), and then an
    in-place activation would corrupt what others read.
    """
    for module in act.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def _load(old: nn.Module, layer: nn.Module) -> None:
    """Load what fits of the old state; the layer may convert statistics while it loads."""
    target = layer.state_dict()
    state = {
        name: value
        for name, value in _statistics_for(old.state_dict(), target, _eps(old)).items()
        if name not in target or target[name].shape == value.shape
    }
    layer.load_state_dict(state, strict=False)


def _statistics_for(
    state: dict[str, torch.Tensor], target: Mapping[str, torch.Tensor], eps: float
) -> dict[str, torch.Tensor]:
    """The old state without running statistics that mean something else in the new layer."""
    state = dict(state)
    if "running_std" in state and "running_std" not in target:
        state["running_var"] = (state.pop("running_std").square() - eps).clamp_min(0)
    complete = "running_mean" in state and ("running_var" in state or "running_std" in state)
    if not (complete and "running_mean" in target):
        dropped = [n for n in state if n.startswith("running_") or n == "num_batches_tracked"]
        for name in dropped:
            del state[name]
    return state


def _eps(old: nn.Module) -> float:
    value = getattr(old, "eps", None)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _carry_flags(old: nn.Module, layer: nn.Module) -> None:
    layer.train(old.training)
    before = dict(old.named_parameters(recurse=False))
    if before and not any(p.requires_grad for p in before.values()):
        layer.requires_grad_(False)  # a frozen norm stays frozen, with whatever it has besides
    for name, parameter in layer.named_parameters():
        if name in before:
            parameter.requires_grad_(before[name].requires_grad)
