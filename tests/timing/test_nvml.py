"""Clocks, power and energy, read from a made-up management library."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from normbench.timing.nvml import Nvml, NvmlError, at_work

CUDA = torch.device("cuda", 0)


class NVMLError(Exception):
    pass


class MadeUp:
    """As pynvml; every run of the work adds 700 mJ."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksEventReasonGpuIdle = 1
    nvmlClocksEventReasonApplicationsClocksSetting = 2
    nvmlClocksEventReasonDisplayClockSetting = 0x100

    def __init__(self, reasons: int = 0, counter: bool = True) -> None:
        self.reasons, self.counter, self.millijoules = reasons, counter, 5_000_000
        self.uuid = ""

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.uuid = uuid
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1980, 2: 3201}[kind]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 645_000

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        raise NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counter:
            raise NVMLError("Not Supported")
        return self.millijoules


def opened(monkeypatch: pytest.MonkeyPatch, library: Any) -> Nvml:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    known = SimpleNamespace(uuid="1234-5678")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    return Nvml(CUDA)


def test_the_device_is_found_by_its_identifier_and_read_in_plain_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = MadeUp()
    found = opened(monkeypatch, library).state()
    assert library.uuid == "GPU-1234-5678"
    assert found == {  # no temperature: this board does not tell
        "sm_clock_hz": 1980e6, "memory_clock_hz": 3201e6, "power_watts": 645.0, "throttled": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reasons", "throttled"), [(0, 0), (1, 0), (2, 0), (0x103, 0), (4, 1), (0x41, 1)]
)
def test_idling_and_asked_for_clocks_are_no_throttling(
    monkeypatch: pytest.MonkeyPatch, reasons: int, throttled: int
) -> None:
    assert opened(monkeypatch, MadeUp(reasons)).state()["throttled"] == throttled


def test_energy_is_that_of_one_run_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    library = MadeUp()
    nvml = opened(monkeypatch, library)
    at, waits = [0.0], [0]

    def run() -> None:
        library.millijoules += 700
        at[0] += 0.3

    def synchronize() -> None:
        waits[0] += 1

    found = at_work(nvml, run, synchronize, seconds=2.0, clock=lambda: at[0])
    assert found["energy_joules"] == pytest.approx(0.7)
    assert found["power_watts"] == 645.0
    assert (at[0], waits[0]) == (pytest.approx(2.1), 8)  # 7 runs, and what came before them


def test_a_board_without_a_counter_still_tells_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    found = at_work(opened(monkeypatch, MadeUp(counter=False)), int, int, seconds=0)
    assert "energy_joules" not in found
    assert found["sm_clock_hz"] == 1980e6


def test_what_held_the_clocks_down_once_while_it_worked_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And clocks and power are those of most of the time."""

    class Hot(MadeUp):
        readings = 0

        def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
            self.readings += 1
            return 1_000 if self.readings == 1 else 500_000

        def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
            return 0x40 if self.readings == 2 else 1

    library = Hot()
    monkeypatch.setattr("normbench.timing.nvml.WATCH_SECONDS", 0.001)
    nvml = opened(monkeypatch, library)

    def run() -> None:
        before = library.readings
        while library.readings < before + 5:
            time.sleep(0.001)

    found = at_work(nvml, run, int, seconds=0)
    assert (found["throttled"], found["power_watts"]) == (1, 500.0)


def test_a_sensor_that_fails_while_it_is_watched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = opened(monkeypatch, MadeUp())
    monkeypatch.delattr(MadeUp, "nvmlDeviceGetCurrentClocksEventReasons")  # an older library
    with pytest.raises(AttributeError, match="ClocksEventReasons"):
        at_work(nvml, int, int, seconds=0)


def test_without_the_package_or_the_driver_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(NvmlError, match="nvidia-ml-py is not installed"):
        opened(monkeypatch, None)

    class NoDriver(MadeUp):
        def nvmlInit(self) -> None:
            raise NVMLError("NVML Shared Library Not Found")

    with pytest.raises(NvmlError, match="NVML: NVML Shared Library Not Found"):
        opened(monkeypatch, NoDriver())
