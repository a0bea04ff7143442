"""Single times of a piece of work: by CUDA events, launched or replayed from a graph; on the CPU.

A timer is a function that takes one time, in seconds for one run, each time it is called. Whoever
uses several takes them in turns (rounds.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from normbench.timing.case import Case

Run = Callable[[], Any]
Timer = Callable[[], float]

WARM_UP = 3
"""Untimed runs before the first: compilation, libraries that choose by trial."""

FLUSH_BYTES = 2**28
COPY_BYTES = 2**29
"""Larger than any L2 cache, and for the copy long enough that its launch does not count."""


MOST_SETS = 1024


class Stopwatch(Protocol):
    """What can be timed on a device.

    Attributes:
        device: the device.
        graphs: whether there are CUDA graphs.
        spoilt: whether the capture of one broke off. Torch may take its generator and its allocator
            for still capturing then, and refuse what the next cell of the process asks of them.
        l2_bytes: size of the L2 cache.
    """

    device: torch.device
    graphs: bool
    spoilt: bool
    l2_bytes: int

    def here(self) -> contextlib.AbstractContextManager[Any]:
        """Where everything that is timed, and its preparation, must be run."""
        ...

    def launched(self, run: Run, *, clear: bool) -> Timer:
        """The work as Python launches it; with `clear` after the caches were overwritten."""
        ...

    def replayed(self, runs: Sequence[Run], *, keep: bool = False) -> Timer:
        """All runs as one CUDA graph; the time of one. `keep`: results do not share memory."""
        ...

    def copy(self) -> Timer:
        """Copying `COPY_BYTES` on the device."""
        ...

    def peak_bytes(self, run: Run) -> int:
        """Most memory in use during the run beyond what was before."""
        ...

    def kernels(self, run: Run) -> int:
        """How many kernels the run launches."""
        ...


def sets_of(case: Case, l2_bytes: int) -> int:
    """Sets of inputs and outputs that hold four times the L2 cache: each is read from memory."""
    one = (2 + case.residual) * case.tensor_bytes
    return max(1, min(MOST_SETS, -(-4 * l2_bytes // one)))


def stopwatch(device: torch.device) -> Stopwatch:
    """The stopwatch for a device."""
    return CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch(device)


class CudaStopwatch:
    """CUDA events on a stream of its own, as capturing graphs needs one."""

    graphs = True

    def __init__(self, device: torch.device) -> None:
        self.device, self.spoilt = device, False
        self.l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @functools.cached_property
    def _overwritten(self) -> torch.Tensor:
        """What is written to clear the caches; memory only where somebody does."""
        return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)

    def here(self) -> contextlib.AbstractContextManager[Any]:
        """On the stream."""
        return torch.cuda.stream(self._stream)

    def launched(self, run: Run, *, clear: bool) -> Timer:
        """See `Stopwatch`."""
        self._warm_up(run)
        return lambda: self._seconds(run, clear)

    def replayed(self, runs: Sequence[Run], *, keep: bool = False) -> Timer:
        """See `Stopwatch`."""
        self._warm_up(runs[0])
        graph = torch.cuda.CUDAGraph()
        kept: list[Any] = []
        with self._capturing(graph):
            for run in runs:
                result = run()
                if keep:
                    kept.append(result)
        graph.replay()
        return functools.partial(self._replay, graph, runs, kept)

    def copy(self) -> Timer:
        """See `Stopwatch`."""
        source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.launched(lambda: target.copy_(source), clear=False)

    def peak_bytes(self, run: Run) -> int:
        """See `Stopwatch`."""
        self._warm_up(run)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device) - before

    def kernels(self, run: Run) -> int:
        """See `Stopwatch`. Copies and fills by the driver count too.

        Counted in a captured graph: a profiler would stay attached, and slow later launches down.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with self._capturing(graph):
            run()
        count = ctypes.c_size_t()
        raw = ctypes.c_void_p(graph.raw_cuda_graph())
        failed = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(raw, None, ctypes.byref(count))
        if failed:
            raise RuntimeError(f"the nodes of a CUDA graph cannot be counted: error {failed}")
        return count.value

    @contextlib.contextmanager
    def _capturing(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                yield
        except BaseException:
            self.spoilt = True
            raise

    def _warm_up(self, run: Run) -> None:
        with self.here():
            for _ in range(WARM_UP):
                run()
        self._stream.synchronize()

    def _replay(self, graph: torch.cuda.CUDAGraph, runs: Sequence[Run], kept: list[Any]) -> float:
        """Holds on to the runs and their results: the graph reads and writes that memory."""
        return self._seconds(graph.replay, False) / len(runs)

    def _seconds(self, run: Run, clear: bool) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        with self.here():
            if clear:
                self._overwritten.zero_()
            start.record(self._stream)
            run()
            end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


class CpuStopwatch:
    """Wall time. Caches are not cleared, and there are neither graphs nor kernels to count."""

    graphs = False
    spoilt = False
    l2_bytes = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def here(self) -> contextlib.AbstractContextManager[Any]:
        """Anywhere."""
        return contextlib.nullcontext()

    def launched(self, run: Run, *, clear: bool) -> Timer:
        """See `Stopwatch`."""
        run()

        def seconds() -> float:
            began = time.perf_counter_ns()
            run()
            return (time.perf_counter_ns() - began) * 1e-9

        return seconds

    def replayed(self, runs: Sequence[Run], *, keep: bool = False) -> Timer:
        """There are none."""
        raise RuntimeError("CUDA graphs need a CUDA device")

    def copy(self) -> Timer:
        """See `Stopwatch`."""
        source = torch.zeros(COPY_BYTES // 64, dtype=torch.uint8)
        target = torch.empty_like(source)
        timer = self.launched(lambda: target.copy_(source), clear=False)
        return lambda: timer() * (COPY_BYTES / source.numel())

    def peak_bytes(self, run: Run) -> int:
        """Not known."""
        return 0

    def kernels(self, run: Run) -> int:
        """There are none."""
        return 0


@contextlib.contextmanager
def as_users_run(*, by_trial: bool = True) -> Iterator[None]:
    """Kernels as they are chosen outside of cells: no deterministic ones forced.

    Args:
        by_trial: whether cuDNN tries its kernels; the workspaces of those it tries take memory.
    """
    forced = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = by_trial
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(forced, warn_only=warn_only)
        torch.backends.cudnn.benchmark = before
