"""A kernel launch as a value: it can be run, or recorded to be compiled for a device not at hand.

The gates that need no GPU (registers, load widths, launch counts) read what the operators would
launch, so that what is checked is what runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

MULTIPROCESSORS = {"meta": 132, "cpu": 4}
"""Where there is no device to ask: an H200's number; few, so that interpreted tests are quick."""

OPTIONS = {"enable_fp_fusion": True}
"""Said, since the default changes with Triton 3.10."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel with its grid and arguments.

    Attributes:
        kernel: the `triton.jit` function.
        grid: programs in up to three dimensions.
        arguments: run-time arguments by name: tensors, integers, floats, None.
        constants: compile-time arguments by name.
        warps: warps of 32 threads in a program.
        cooperative: whether its programs wait for each other. The driver then starts all of them
            at once, or refuses.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int
    cooperative: bool = False

    def options(self) -> dict[str, Any]:
        """What the compiler is told beside arguments and constants."""
        return {**OPTIONS, "num_warps": self.warps, "launch_cooperative_grid": self.cooperative}


_recorders: list[list[Launch]] = []


def run(launch: Launch) -> None:
    """Launch the kernel on the current stream of its tensors' device, or note it (`recording`)."""
    for launches in _recorders:
        launches.append(launch)
    device = next(a.device for a in launch.arguments.values() if isinstance(a, torch.Tensor))
    if device.type == "meta":
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _start(launch)
    else:
        _start(launch)


def _start(launch: Launch) -> None:
    launch.kernel[launch.grid](**launch.arguments, **launch.constants, **launch.options())


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Note every launch inside; with tensors on the meta device nothing is run."""
    launches: list[Launch] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        # By identity: a recording around this one may hold equal launches.
        _recorders[:] = [others for others in _recorders if others is not launches]


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return MULTIPROCESSORS[device.type]


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << max(0, value - 1).bit_length()


def alignment(value: int) -> int:
    """The largest power of two, up to 16, that divides `value`."""
    return min(16, value & -value)
