"""Where the fused kernels run, and why they do not where they do not. Imports no Triton."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of the activations the kernels read and write; they compute in float32."""


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def interpreted() -> bool:
    """Whether Triton interprets kernels in this process: TRITON_INTERPRET=1 before its import."""
    if os.environ.get("TRITON_INTERPRET") != "1" or not has_triton():
        return False
    from triton import language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.sum, InterpretedFunction)  # as decorated when Triton was imported


def devices() -> frozenset[str]:
    """Types of the devices on which the kernels run in this process."""
    if not has_triton():
        return frozenset()
    return frozenset({"cuda", "cpu"} if interpreted() else {"cuda"})


def fallback(device: torch.device, dtype: torch.dtype) -> str:
    """Why inputs of this type on this device take the eager method; empty if they do not.

    torch calls a ROCm device `cuda` too. On the CPU the kernels run while Triton interprets them.
    """
    if not has_triton():
        return "Triton is not installed"
    if dtype not in DTYPES:
        return f"the kernels take float32, float16 and bfloat16, not {str(dtype)[6:]}"
    if device.type in devices():
        return ""
    return f"the kernels need a CUDA device, this is {device.type}"
