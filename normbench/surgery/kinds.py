"""Which modules are normalizations, and how to take one apart.

The classes are those of torch and timm 1.0.31. What is fused with a norm (drop, act) is carried
over the way timm's own converters do it (`convert_sync_batchnorm`, `freeze_batch_norm_2d`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timm.layers import evo_norm, filter_response_norm, inplace_abn, norm, norm_act
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normbench import registry
from normbench.surgery.wrappers import ChannelsLast, NormAct


def _classes(module: Any, *names: str) -> tuple[type[nn.Module], ...]:
    """Those of the named classes that the installed timm has."""
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


_EVO_B = _classes(evo_norm, "EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2")
_EVO_S = _classes(evo_norm, "EvoNorm2dS0", "EvoNorm2dS1", "EvoNorm2dS2")  # their `a` are subclasses
_FRN = _classes(filter_response_norm, "FilterResponseNormTlu2d", "FilterResponseNormAct2d")

CHANNELS_FIRST: tuple[type[nn.Module], ...] = (
    _BatchNorm, nn.GroupNorm, _InstanceNorm, *_EVO_B, *_EVO_S, *_FRN,
    *_classes(norm, "LayerNorm2d", "LayerNorm2dFp32", "LayerNormExp2d"),
    *_classes(norm, "RmsNorm2d", "RmsNorm2dFp32", "SimpleNorm2d", "SimpleNorm2dFp32"),
    *_classes(norm_act, "FrozenBatchNorm2d", "FrozenBatchNormAct2d"),
    *_classes(norm_act, "LayerNormAct2d", "LayerNormAct2dFp32"),
)  # fmt: skip
"""Norms of N,C,* inputs. Asked first: timm's LayerNorm2d is an nn.LayerNorm too."""

CHANNELS_LAST: tuple[type[nn.Module], ...] = (
    nn.LayerNorm, nn.RMSNorm,
    *_classes(norm, "RmsNorm", "RmsNormFp32", "SimpleNorm", "SimpleNormFp32"),
)  # fmt: skip
"""Norms of N,*,C inputs."""

_ACTIVATION_HOMES = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "timm.layers.activations_me",
)
_NOT_ELEMENTWISE = (
    nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """What a slot is like: written on every layer surgery puts in, as `normbench_mark`.

    Attributes:
        method: catalogue name of the layer.
        num_features: channels.
        eps: the eps of the architecture, not of the method.
        affine: whether the architecture has gamma and beta there.
    """

    method: str
    num_features: int
    eps: float | None
    affine: bool


@dataclass(slots=True, eq=False)
class Home:
    """Where an activation stood that a method took over: on its layer, as `normbench_home`.

    Attributes:
        place: the identity that stands there now.
        act: the activation.
        inplace: whether it overwrote its input there.
        returned: whether it stands there again.
    """

    place: nn.Module
    act: nn.Module
    inplace: bool
    returned: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """A normalization taken apart: `act(drop(core(x)))`, perhaps with channels last."""

    core: nn.Module
    kind: str
    num_features: int
    eps: float | None
    affine: bool
    channels_last: bool = False
    drop: nn.Module | None = None
    act: nn.Module | None = None
    note: str = ""
    home: Home | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A normalization that is recognised but cannot be replaced."""

    kind: str
    reason: str


def is_activation(module: nn.Module) -> bool:
    """Whether the module is an elementwise activation of torch or timm."""
    home = type(module).__module__
    return home in _ACTIVATION_HOMES and not isinstance(module, _NOT_ELEMENTWISE)


def walk(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Path and module of everything below `model`, but not of the inside of normalizations.

    A module that stands at several places is given once for each.
    """
    for name, child in model._modules.items():
        if child is None:
            continue
        path = f"{prefix}{name}"
        yield path, child
        if take_apart(child) is None:
            yield from walk(child, f"{path}.")


def take_apart(module: nn.Module) -> Parts | Refusal | None:
    """The parts of a normalization, a refusal with its reason, or None if it is not one."""
    if isinstance(module, (NormAct, ChannelsLast)) or own_method(module):
        return _own(module)
    kind = type(module).__name__
    if isinstance(module, inplace_abn.InplaceAbn):
        return Refusal(
            kind, "it computes norm and activation in one call of the inplace_abn package"
        )
    if not isinstance(module, CHANNELS_FIRST + CHANNELS_LAST):
        return None
    shape = getattr(module, "normalized_shape", None)
    if shape is not None and len(shape) != 1:
        return Refusal(kind, f"it normalizes over several dimensions at once, {tuple(shape)}")
    num_features = _num_features(module)
    if num_features < 1:
        return Refusal(kind, "its number of channels is not known before its first forward")
    act, note = _fused_activation(module)
    return Parts(
        core=module,
        kind=kind,
        num_features=num_features,
        eps=getattr(module, "eps", None),
        affine=getattr(module, "weight", None) is not None,
        channels_last=not isinstance(module, CHANNELS_FIRST),
        drop=_present(getattr(module, "drop", None)),
        act=act,
        note=note,
    )


def own_method(module: nn.Module) -> str | None:
    """The method this very module is a layer of, or None.

    Layers that surgery put in carry a mark; layers that a model built itself through the
    registry are recognised by their class.
    """
    mark = getattr(module, "normbench_mark", None)
    if isinstance(mark, Mark):
        return mark.method
    return _methods_by_class(tuple(registry.list_methods())).get(type(module))


@functools.lru_cache(maxsize=1)
def _methods_by_class(names: tuple[str, ...]) -> dict[Any, str]:
    return {registry.get(name).builder: name for name in names}


def _own(module: nn.Module) -> Parts | Refusal:
    drop = act = None
    channels_last = False
    core = module
    if isinstance(core, NormAct):
        core, drop, act = core.norm, _present(core.drop), _present(core.act)
    if isinstance(core, ChannelsLast):
        core, channels_last = core.norm, True
    method = own_method(core)
    if method is None:
        return Refusal(type(core).__name__, "it is not a layer of the catalogue")
    mark = getattr(core, "normbench_mark", None)
    if not isinstance(mark, Mark):
        affine = getattr(core, "weight", None) is not None
        mark = Mark(method, _num_features(core), getattr(core, "eps", None), affine)
    if mark.num_features < 1:
        return Refusal(method, "its number of channels is not recorded in it")
    home: Home | None = getattr(core, "normbench_home", None)
    if registry.get(method).consumes_activation:
        act = act or _present(getattr(core, "act", None))
    return Parts(
        core, method, mark.num_features, mark.eps, mark.affine, channels_last, drop, act, "", home
    )


def _num_features(module: nn.Module) -> int:
    for name in ("num_features", "num_channels"):
        if isinstance(value := getattr(module, name, None), int):
            return value
    if (shape := getattr(module, "normalized_shape", None)) is not None:
        return int(shape[0])
    weight = getattr(module, "weight", None)
    return 0 if weight is None else int(weight.numel())


def _present(module: Any) -> nn.Module | None:
    """The module, unless there is none or it does nothing."""
    if not isinstance(module, nn.Module) or isinstance(module, nn.Identity):
        return None
    return module


def _fused_activation(module: nn.Module) -> tuple[nn.Module | None, str]:
    """The activation the module applies itself, and a note where it had to be chosen."""
    if (act := _present(getattr(module, "act", None))) is not None:
        return act, ""
    name = type(module).__name__
    if not getattr(module, "apply_act", False):
        return None, ""
    # These are nonlinear by themselves; a plain norm in their place needs an activation or the
    # network becomes linear there. EvoNorm-S0 is x·sigmoid(v·x) over a deviation, the others clip.
    if isinstance(module, _EVO_S):
        return nn.SiLU(), f"{name} is its own nonlinearity; SiLU stands for it"
    if isinstance(module, _EVO_B + _FRN):
        return nn.ReLU(), f"{name} is its own nonlinearity; ReLU stands for it"
    return None, ""
