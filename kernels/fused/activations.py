"""Which activations the kernels apply themselves, and by which code. Imports no Triton."""

from __future__ import annotations

from torch import nn

IDENTITY, RELU, SILU, GELU, GELU_TANH, HARDSWISH = range(6)

_BY_CLASS = {
    "ReLU": RELU,
    "SiLU": SILU, "Swish": SILU, "SwishMe": SILU,
    "Hardswish": HARDSWISH, "HardSwish": HARDSWISH, "HardSwishMe": HARDSWISH,
    "GELU": GELU, "GELUTanh": GELU_TANH,
}  # fmt: skip
"""By name of the class, those of torch and of `timm.layers`, which this floor may not import."""


def code_of(act: nn.Module | None) -> int | None:
    """The code of an activation; None if the kernels do not apply it."""
    if act is None or type(act) is nn.Identity:
        return IDENTITY
    if type(act).__module__.partition(".")[0] not in ("torch", "timm"):
        return None
    if isinstance(act, nn.GELU):
        return GELU_TANH if act.approximate == "tanh" else GELU
    return _BY_CLASS.get(type(act).__name__)
