"""The numerical state a cell runs in: the same for every cell, restored afterwards."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def reproducible(seed: int, device: torch.device, threads: int) -> Iterator[None]:
    """Give a cell the state that makes its numbers repeatable, whatever ran before it.

    - All generators start from `seed`.
    - Deterministic kernels where they exist; where none does torch warns, and the warning ends up
      in the record's notes: better than a method that cannot be measured at all.
    - `fp32` means float32: no TF32, which cuDNN would otherwise use for convolutions.
    - Denormals count as zero: on a CPU they can make a dying network many times slower.

    All of it, the state of the generators included, is put back, as cells may run in a process
    that is the user's own.

    Args:
        seed: the cell's.
        device: where the cell runs.
        threads: CPU threads torch may use.
    """
    # cuBLAS reads this when it starts; without it its results depend on the order of streams.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with ExitStack() as undo:
        undo.enter_context(_generators(seed, device))
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        # Torch cannot tell the present setting, but arithmetic can.
        undo.callback(torch.set_flush_denormal, sys.float_info.min / 2 == 0.0)
        torch.set_flush_denormal(True)
        _deterministic(undo)
        _full_precision(undo)
        yield


@contextmanager
def _generators(seed: int, device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # the global state is what must be fixed
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _deterministic(undo: ExitStack) -> None:
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    undo.callback(torch.use_deterministic_algorithms, enabled, warn_only=warn_only)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor with NaN would be a price on reading memory nobody wrote.
    _set(undo, torch.utils.deterministic, "fill_uninitialized_memory", False)
    _set(undo, torch.backends.cudnn, "benchmark", False)  # its choice depends on timing


def _full_precision(undo: ExitStack) -> None:
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        _set(undo, backend, "allow_tf32", False)


def _set(undo: ExitStack, owner: Any, name: str, value: bool) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
