"""Clocks, power, throttling and energy of a CUDA device, from NVIDIA's management library.

Through nvidia-ml-py, which may be missing, as may the driver's library: the caller is told why.
Energy is the difference of the board's counter, idle power included. That counter moves only every
tenth of a second or so, hence runs of seconds, as Zeus (You et al., NSDI 2023) has them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

ENERGY_SECONDS = 2.0
"""How long work is repeated for its energy."""

WATCH_SECONDS = 0.1
"""Between two readings of the sensors meanwhile."""

HARMLESS = ("GpuIdle", "ApplicationsClocksSetting", "DisplayClockSetting")
"""Reasons for lower clocks that are no throttling: nothing to do, or asked for."""


class NvmlError(Exception):
    """There is nothing to read, with the reason."""


class Nvml:
    """The sensors of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Open them.

        Raises:
            NvmlError: if nvidia-ml-py or the driver's library is missing.
        """
        try:
            import pynvml
        except ImportError as error:
            raise NvmlError("nvidia-ml-py is not installed") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            raise NvmlError(f"NVML: {error}") from error

    def state(self) -> dict[str, float]:
        """`sm_clock_hz`, `memory_clock_hz`, `power_watts`, `temperature_celsius`, `throttled`.

        What the device does not tell is left out. `throttled` is 1 if clocks are held down by
        power, heat or another cause that nobody asked for.
        """
        nvml, handle = self._nvml, self._handle
        reads: dict[str, Callable[[], float]] = {
            "sm_clock_hz": lambda: 1e6 * nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_hz": lambda: (
                1e6 * nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
            ),
            "power_watts": lambda: 1e-3 * nvml.nvmlDeviceGetPowerUsage(handle),
            "temperature_celsius": lambda: float(
                nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            "throttled": self._throttled,
        }
        found: dict[str, float] = {}
        for name, read in reads.items():
            try:
                found[name] = read()
            except nvml.NVMLError:  # this board has no such sensor
                continue
        return found

    def _throttled(self) -> float:
        nvml = self._nvml
        reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        for name in HARMLESS:
            reasons &= ~int(getattr(nvml, f"nvmlClocksEventReason{name}"))
        return float(reasons != 0)

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None without a counter (before Volta, in MIG)."""
        try:
            return 1e-3 * float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError:
            return None


def at_work(
    nvml: Nvml,
    run: Callable[[], object],
    synchronize: Callable[[], object],
    seconds: float = ENERGY_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """The device while a run is repeated: its state, as `Nvml.state` has it, and `energy_joules`.

    The energy is that of one run, of as many as fill the time; left out where the board has no
    counter of it.

    Args:
        nvml: the sensors.
        run: the work; it has been run before.
        synchronize: waits until the device has done it.
        seconds: of the whole measurement.
        clock: of the time.
    """
    synchronize()
    over = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="nvml") as beside:
        watching = beside.submit(_watch, nvml, over)
        try:
            before, end, runs = nvml.joules(), clock() + seconds, 0
            while runs == 0 or clock() < end:
                run()
                synchronize()  # or the queue would hold far more work than fits the time
                runs += 1
            after = nvml.joules()
        finally:
            over.set()
        found = _together(watching.result())
    if before is not None and after is not None:
        found["energy_joules"] = (after - before) / runs
    return found


def _watch(nvml: Nvml, over: threading.Event) -> list[dict[str, float]]:
    """States read now and then, in a thread of its own.

    Whoever launches the work cannot look: small work is done by the time it is launched, and a
    device that waits is held down by nothing.
    """
    states = [nvml.state()]
    while not over.wait(WATCH_SECONDS):
        states.append(nvml.state())
    return states


def _together(states: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians; but held down once is held down."""
    found = {}
    for name in {name for state in states for name in state}:
        values = [state[name] for state in states if name in state]
        found[name] = max(values) if name == "throttled" else statistics.median(values)
    return found
