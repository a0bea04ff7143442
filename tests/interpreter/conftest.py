"""The kernels, interpreted on the CPU. Runs in a pytest process of its own (`make test`).

Triton decides when it is imported whether it interprets, so the variable is set before anything
imports it; a process that has it already, compiling, skips these tests. Where there is a CUDA
device the kernels are compiled, and the same tests are put to them there (`make gpu`).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

if "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from traffic import counted

from normbench.kernels.fused.dispatch import interpreted

ON_A_DEVICE = torch.cuda.is_available() and not interpreted()


@pytest.fixture(autouse=True)
def _within_bounds() -> Iterator[None]:
    """No test reads or writes outside of what it gave a kernel; values alone would not tell."""
    with counted() if interpreted() else contextlib.nullcontext():
        yield


@pytest.fixture
def interpreter() -> None:
    """For tests that look at what interpreted kernels read and write."""
    if not interpreted():
        pytest.skip("the kernels are compiled here: what they move is not seen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (interpreted() or ON_A_DEVICE):
        reason = "Triton compiles in this process: run `pytest tests/interpreter` by itself"
        for item in items:
            if "tests/interpreter" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    """What a test makes without naming a device is made on the GPU.

    Generators do not follow: tests say `torch.Generator(torch.get_default_device())`.
    """
    if not ON_A_DEVICE:
        yield
        return
    torch.set_default_device("cuda")
    # Convolutions would round their inputs to TF32, and differently from run to run.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
    torch.set_default_device(None)


class _Nothing:
    def restore(self) -> None:
        """Nothing was changed."""


def _patch_language_once() -> None:
    """Keep the interpreter from patching all of `triton.language` again in every nested call.

    Three fifths of the time of an interpreted program are spent on that, and nothing depends on it.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    original = interpreter._patch_lang

    def patch(fn: Any) -> Any:
        known = (tl, tl.core)
        langs = [v for v in fn.__globals__.values() if inspect.ismodule(v) and v in known]
        if langs and not any(tl.core.is_builtin(lang.load) for lang in langs):
            return _Nothing()
        return original(fn)

    interpreter._patch_lang = patch


def _round_bfloat16_to_nearest() -> None:
    """Convert to bfloat16 as devices do: the interpreter cuts the lower bits off."""
    from triton import language as tl
    from triton.runtime import interpreter

    original = interpreter._convert_float

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            rounded = torch.from_numpy(np.array(values)).bfloat16()
            return rounded.view(torch.int16).numpy().view(np.uint16)
        if source == tl.bfloat16 and target == tl.float32:
            return values.astype(np.uint32) << 16
        return original(values, source, target, rounding)

    interpreter._convert_float = convert


def _take_one_element_for_a_number() -> None:
    """Triton 3.6 asks numpy for the number in an array of one element; numpy 2.4 refuses."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch


if interpreted():
    _take_one_element_for_a_number()
    _patch_language_once()
    _round_bfloat16_to_nearest()
