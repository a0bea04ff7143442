"""The CUDA stopwatch's account of captures, with CUDA's own part made up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from normbench.timing.stopwatch import CudaStopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> CudaStopwatch:
    @contextlib.contextmanager
    def capture(graph: Any, stream: Any) -> Iterator[None]:
        yield

    class Graph:
        def replay(self) -> None:
            pass

    class Stream:
        def __init__(self, device: torch.device) -> None:
            pass

        def synchronize(self) -> None:
            pass

    class Properties:
        L2_cache_size = 1

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    return CudaStopwatch(torch.device("cuda", 0))


def test_a_capture_that_breaks_off_spoils_the_process(clock: CudaStopwatch) -> None:
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        if runs > 3:  # the warm-up's
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        clock.replayed([run])
    assert clock.spoilt


def test_neither_a_capture_that_ends_nor_a_failure_before_one_does(clock: CudaStopwatch) -> None:
    clock.replayed([lambda: None])

    def broken() -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        clock.replayed([broken])
    assert not clock.spoilt
