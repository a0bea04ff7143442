"""Threads, memory and precision are set for a measurement, and put back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from normbench.timing import machine
from normbench.timing.machine import (
    MachineError,
    available_cores,
    check_precision,
    check_threads,
    pinned,
    with_precision,
    within_memory,
)

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins threads in this way")


@linux
def test_the_process_is_on_so_many_cores_and_afterwards_on_all() -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with pinned(1, CPU):
        assert torch.get_num_threads() == 1
        assert os.sched_getaffinity(0) == {min(cores)}
        torch.randn(300, 300) @ torch.randn(300, 300)  # may start threads
    assert os.sched_getaffinity(0) == cores
    assert torch.get_num_threads() == threads
    assert set(map(frozenset, machine._affinities().values())) == {frozenset(cores)}


@linux
def test_it_is_put_back_after_an_error_too() -> None:
    cores = os.sched_getaffinity(0)
    with pytest.raises(KeyError), pinned(1, CPU):
        raise KeyError
    assert os.sched_getaffinity(0) == cores


def test_more_threads_than_cores_are_refused() -> None:
    check_threads(available_cores())
    with pytest.raises(MachineError, match=f"this machine has {available_cores()} cores"):
        check_threads(available_cores() + 1)


@linux
def test_an_allocation_the_machine_has_no_memory_for_fails_and_smaller_ones_do_not() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with within_memory(CPU):
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(2**46, dtype=torch.uint8)
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] < 2**46
        assert torch.ones(1000).sum() == 1000
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@linux
def test_a_containers_limit_is_what_is_free_where_it_is_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    free = machine._free_memory()  # there are no such files: the machine's own figure
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert machine._free_memory() == 2000000 < free
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._free_memory() == pytest.approx(free, rel=0.5)


@linux
def test_on_cuda_no_core_is_taken_away() -> None:
    cores = os.sched_getaffinity(0)
    with pinned(1, torch.device("cuda", 0)):
        assert torch.get_num_threads() == 1
        assert os.sched_getaffinity(0) == cores


def test_tf32_is_on_only_where_it_is_asked_for() -> None:
    owners = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [owner.allow_tf32 for owner in owners]
    for precision, allowed in (("tf32", True), ("fp32", False)):
        with with_precision(precision):
            assert [owner.allow_tf32 for owner in owners] == [allowed, allowed]
    assert [owner.allow_tf32 for owner in owners] == before


def test_precisions_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        check_precision(precision, CPU)
    with pytest.raises(MachineError, match="a CPU has fp32, bf16 and fp16"):
        check_precision("tf32", CPU)
    old = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **rest: False)
    check_precision("fp16", old)
    for precision in ("tf32", "bf16"):
        with pytest.raises(MachineError, match=f"Tesla V100 has no {precision}"):
            check_precision(precision, old)
