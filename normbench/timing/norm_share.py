"""The share of a model's time that its normalizations take: what a faster norm could save at most.

Measured by torch's profiler in a pass of its own. In the forward a slot's time is that of its
module. Its backward is known by autograd's sequence numbers: every node that was made while the
module ran belongs to it. On CUDA the time is that of the kernels. The profiler itself costs a few
microseconds an operation, so shares of small models on small inputs are too large by a little.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch.autograd.profiler_util import FunctionEvent
from torch.nn.utils.parametrize import ParametrizationList
from torch.profiler import ProfilerActivity, profile, record_function

STEPS = 2
_SLOT, _STEP = "normbench::slot", "normbench::step"
_NODE = "autograd::engine::evaluate_function"

# It tells on stderr that it starts, stops, and finds no GPU; read once, when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


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
    events = list(profiler.events())
    seconds = _device_time if device.type == "cuda" else _cpu_time
    whole = sum(map(seconds, _whole(events, device)))
    forward = sum(seconds(event) for event in events if event.name == _SLOT)
    own = {number for made in nodes for number in made}
    backward = sum(
        seconds(event)
        for event in events
        if event.name.startswith(_NODE) and event.sequence_nr in own
    )
    return min(1.0, (forward + backward) / whole) if whole else float("nan")


def _whole(events: Sequence[FunctionEvent], device: torch.device) -> list[FunctionEvent]:
    """Events that add up to everything.

    The steps; but on CUDA, whose backward has a thread of its own, whatever has no parent.
    """
    if device.type == "cuda":
        return [e for e in events if e.cpu_parent is None and e.device_type.name == "CPU"]
    return [e for e in events if e.name == _STEP]


def _cpu_time(event: FunctionEvent) -> float:
    return float(event.time_range.elapsed_us())  # type: ignore[no-untyped-call]


def _device_time(event: FunctionEvent) -> float:
    return float(event.device_time_total)


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
