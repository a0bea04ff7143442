"""The layer of a method and its peers, for one case of the kernel benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normbench import registry
from normbench.timing.case import FORMS, Case

OURS = "ours"

PEERS = {
    "eager": "the method without kernels (nn.BatchNorm2d for batch_norm_triton), then addition and "
    "activation in place",
    "eager_nchw": "eager in contiguous layout",
    "eager_fp16": "eager in float16, which for batch norm takes cuDNN",
    "batch_norm": "nn.BatchNorm2d, then addition and activation in place",
    "compiled": "torch.compile of eager",
    "compiled_max": "torch.compile of eager, mode max-autotune-no-cudagraphs",
    "apex": "apex.contrib.groupbn, float16, channels last",
    "attorch": "attorch.BatchNorm2d, then addition and activation",
}
"""What a cell may name in `peers`."""

FOREIGN = {"apex": "apex.contrib.groupbn.batch_norm", "attorch": "attorch"}
"""Peers that are not torch's, and what must be importable."""

FULL = 10**6
"""Training forwards after which Batch Renorm's default schedule is over."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A layer, and the case in the layout and type that it is given."""

    name: str
    layer: nn.Module
    case: Case


class Composed(nn.Module):
    """Norm, addition and activation one after the other, in place as in timm's ResNets."""

    def __init__(self, norm: nn.Module, act: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """N,C,H,W to the same shape."""
        y: Tensor = self.norm(x)
        if residual is not None:
            y += residual
        return y if self.act is None else self.act(y)


def build(
    name: str, method: str, params: Mapping[str, Any], case: Case, device: torch.device
) -> Contestant:
    """The contestant `name` (`OURS` or a key of `PEERS`) for a method's layer.

    Raises:
        UnsupportedError: if the peer does not do this case.
        ImportError: if it is not installed.
    """
    if name == "eager_nchw":
        case = case.like("nchw", case.precision)
    elif name in ("eager_fp16", "apex"):
        case = case.like("nhwc" if name == "apex" else case.layout, "fp16")
    layer = _layer(name, method, params, case).to(device).train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=1.0, std=0.3)
    in_full_swing(layer)
    if name.startswith("compiled"):
        mode = "max-autotune-no-cudagraphs" if name == "compiled_max" else None
        layer.compile(mode=mode, dynamic=False)
    return Contestant(name, layer, case)


def in_full_swing(layer: nn.Module) -> None:
    """Put schedules behind the layer: Batch Renorm is else timed as batch norm."""
    for module in layer.modules():
        if isinstance(getattr(module, "active_steps", None), Tensor):
            module.num_batches_tracked.fill_(FULL)  # type: ignore[operator]


def _layer(name: str, method: str, params: Mapping[str, Any], case: Case) -> nn.Module:
    form, channels = FORMS[case.form], case.shape[1]
    if name == OURS:
        return registry.build(method, channels, form.activation(), **params)
    if name == "apex":
        return _Apex(channels, form.act)
    if name == "attorch":
        norm = importlib.import_module(FOREIGN[name]).BatchNorm2d(channels)
        return Composed(norm, form.activation())
    plain = method.removesuffix("_triton")
    if name == "batch_norm" or plain == "batch_norm":
        return Composed(nn.BatchNorm2d(channels), form.activation(inplace=True))
    if registry.get(plain).consumes_activation:
        return Composed(registry.build(plain, channels, form.activation(), **params), None)
    norm = registry.build(plain, channels, **params)
    return Composed(norm, form.activation(inplace=True))


class _Apex(nn.Module):
    """apex takes N,H,W,C tensors and fuses ReLU, with a residual or without."""

    def __init__(self, channels: int, act: type[nn.Module] | None) -> None:
        super().__init__()
        if act not in (None, nn.ReLU):
            raise registry.UnsupportedError("apex.contrib.groupbn fuses no activation but ReLU")
        home = importlib.import_module(FOREIGN["apex"])
        self.norm = home.BatchNorm2d_NHWC(channels, fuse_relu=act is nn.ReLU)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        given = [t.permute(0, 2, 3, 1) for t in (x, residual) if t is not None]
        y: Tensor = self.norm(*given)
        return y.permute(0, 3, 1, 2)
