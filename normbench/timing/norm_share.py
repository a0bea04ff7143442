"""The share of a model's time that its normalizations take: what a faster norm could save at most.

Measured by torch's profiler in a pass of its own. In the forward a slot's time is that of its
module. Its backward is known by autograd's sequence numbers: every node that was made while the
module ran belongs to it. On CUDA the time is that of the kernels. The profiler itself costs a few
microseconds an operation, so shares of small models on small inputs are too large by a little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch.nn.utils.parametrize import ParametrizationList
from torch.profiler import ProfilerActivity, profile, record_function

from normbench.timing.profiling import raw_events

STEPS = 2
_SLOT, _STEP = "normbench::slot", "normbench::step"
_NODE = "autograd::engine::evaluate_function"


def norm_share(
    model: nn.Module, slots: Sequence[nn.Module], run: Callable[[], None], device: torch.device
) -> float:
    """Fraction of the work's time that is spent in the slots, forward and backward, 0 to 1.

    Weight-side methods count too where torch's parametrizations carry them. The accumulation of
    the norms' parameter gradients and their optimizer step do not.

    Args:
        model: runs in `run`; not compiled, as compiled code has no modules.
        slots: its normalizations.
        run: the work; it has been run before.
        device: where.
    """
    inside = {id(part) for slot in slots for part in slot.modules()}
    weights = [
        module
        for module in model.modules()
        if isinstance(module, ParametrizationList) and id(module) not in inside
    ]
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    nodes: list[range] = []
    with _marked([*slots, *weights], nodes), profile(activities=activities) as profiler:
        for _ in range(STEPS):
            with record_function(_STEP):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    own = {number for made in nodes for number in made}
    spent, whole = (_kernels if device.type == "cuda" else _ranges)(profiler, own)
    return spent / whole if whole else float("nan")


def _ranges(profiler: profile, own: set[int]) -> tuple[float, float]:
    """Nanoseconds on the CPU in the slots and their nodes, and in all steps."""
    spent = whole = 0
    for event in raw_events(profiler):
        name = event.name()
        if name == _STEP:
            whole += event.duration_ns()
        elif name == _SLOT or (name.startswith(_NODE) and event.sequence_nr() in own):
            spent += event.duration_ns()
    return spent, whole


def _kernels(profiler: profile, own: set[int]) -> tuple[float, float]:
    """Microseconds of the kernels launched in the slots and their nodes, and of all kernels.

    The backward has a thread of its own, so that all kernels are those of whatever has no parent. A
    mark stands on the device as well, as an annotation over its kernels: those do not count.
    """
    events = profiler.events()  # type: ignore[no-untyped-call]
    launching = [e for e in events if e.device_type.name == "CPU"]
    slots = [
        e
        for e in launching
        if e.name == _SLOT or (e.name.startswith(_NODE) and e.sequence_nr in own)
    ]
    whole = sum(e.device_time_total for e in launching if e.cpu_parent is None)
    return sum(e.device_time_total for e in slots), whole


@contextlib.contextmanager
def _marked(modules: Sequence[nn.Module], nodes: list[range]) -> Iterator[None]:
    """Mark the forwards of modules for the profiler, and note the autograd nodes made in them."""
    marks: list[tuple[Any, int]] = []

    def enter(module: nn.Module, given: Any) -> None:
        mark = record_function(_SLOT)
        mark.__enter__()  # type: ignore[no-untyped-call]
        marks.append((mark, _get_sequence_nr()))

    def leave(module: nn.Module, given: Any, result: Any) -> None:
        mark, first = marks.pop()
        nodes.append(range(first, _get_sequence_nr()))
        mark.__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(enter) for module in modules]
    handles += [module.register_forward_hook(leave, always_call=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
