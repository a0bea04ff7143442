"""Cells on supervised worker processes: one that crashes or hangs costs its own cell only.

A fork server that has loaded torch and timm once makes a fresh process in milliseconds. A process
runs many cells, since starting one still costs more than nothing and what its libraries set up at
first use (a CUDA context, compiled kernels) stays warm. It is replaced after one that failed, as
a failure (a broken CUDA context, memory that does not come back) may outlive its cell, and after
one that says it left something behind.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, cast

from normbench.cells import Cell, Record
from normbench.engine.events import Progress, Started
from normbench.engine.execute import (
    execute,
    make_record,
    now,
    short_paths,
    timed_out,
    timeout_seconds,
)
from normbench.engine.serve import Setup, serve, throttled
from normbench.tasks.outcome import Outcome

Notify = Callable[[Started | Progress], None]

GRACE_SECONDS = 2.0
"""How much longer than its limit a cell may take before its process is killed: a cell that still
reports progress ends itself, with a cleaner record and without losing the process."""

GOODBYE_SECONDS = 3.0
"""How long an idle process may take to end by itself."""

_SUSPECT = ("error", "oom", "timeout")


class WorkerError(RuntimeError):
    """Worker processes cannot be started at all."""


def run_inline(cells: Sequence[Cell], setup: Setup, notify: Notify) -> Generator[Record]:
    """Run cells one after another in this process.

    A cell that crashes takes the process with it, and one that hangs is not stopped.
    """
    for cell in cells:
        notify(Started(cell, 0))

        def progress(fraction: float, cell: Cell = cell) -> None:
            notify(Progress(cell, fraction, 0))

        yield execute(
            cell, device=setup.device, threads=setup.threads, submitter=setup.submitter,
            progress=throttled(progress),
        )  # fmt: skip


def run_pool(
    cells: Sequence[Cell], setup: Setup, workers: int, notify: Notify
) -> Generator[Record]:
    """Run cells on `workers` processes; records come in the order in which cells end.

    Closing the iterator kills what still runs.

    Raises:
        WorkerError: if a process cannot be started.
    """
    pending = collections.deque(cells)
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normbench-")))
        crew: list[_Worker] = []
        stack.callback(_disband, crew)
        for number in range(min(workers, len(cells))):
            crew.append(_Worker(number, setup, logs))
        while pending or any(worker.busy for worker in crew):
            for position, worker in enumerate(crew):
                if pending and worker.ended:
                    crew[position] = worker = _Worker(worker.number, setup, logs)
                if pending and worker.give(pending[0]):
                    notify(Started(pending.popleft(), worker.number))
            alive = [worker for worker in crew if not worker.ended]
            seconds = min((worker.seconds_left() for worker in alive), default=0.0)
            wait([worker.connection for worker in alive], timeout=seconds)
            for worker in alive:
                record = worker.look(notify)
                if record is not None:
                    yield record
                suspect = record is not None and (worker.spoilt or record.status in _SUSPECT)
                if worker.ended or suspect:
                    worker.kill()


def _disband(crew: list[_Worker]) -> None:
    for worker in crew:
        worker.dismiss()
    for worker in crew:
        worker.kill()


@dataclass
class _Running:
    cell: Cell
    started_at: str
    began: float


class _Worker:
    """One worker process, seen from the driver."""

    def __init__(self, number: int, setup: Setup, logs: Path) -> None:
        self.number = number
        self.setup = setup
        self.ready = False
        self.spoilt = False
        self.ended = False
        self._running: _Running | None = None
        self._log = logs / f"worker-{number}.log"
        self.connection, self._process = _start(setup, self._log)

    @property
    def busy(self) -> bool:
        """Whether it has a cell."""
        return self._running is not None

    def give(self, cell: Cell) -> bool:
        """Hand it a cell; False if it cannot take one, or has died meanwhile."""
        if self.busy or self.ended or not self.ready:
            return False
        try:
            self.connection.send(cell)
        except OSError:
            self.ended = True
            return False
        self._running = _Running(cell, now(), time.monotonic())
        return True

    def seconds_left(self) -> float:
        """Until it must be looked at, at most a minute (a limit may be infinite)."""
        if self._running is None:
            return 60.0
        limit = timeout_seconds(self._running.cell) + GRACE_SECONDS
        return min(max(self._running.began + limit - time.monotonic(), 0.0), 60.0)

    def look(self, notify: Notify) -> Record | None:
        """Take what it has sent; the record of its cell if that has ended, in whatever way."""
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "record":
                    self._running = None
                    return cast(Record, value)
                if kind == "ready":
                    self.ready = True
                elif kind == "spoilt":
                    self.spoilt = True
                elif self._running:
                    notify(Progress(self._running.cell, value, self.number))
        except (EOFError, OSError):
            return self._died()
        if self._running and self.seconds_left() == 0.0:
            self.kill()
            return self._lost(timed_out(self._running.cell))
        return None

    def dismiss(self) -> None:
        """Let it end by itself if it has no cell, and give back what it holds of the system."""
        if not self.busy and not self.ended:
            self.connection.close()

    def kill(self) -> None:
        """End it, at once unless it was dismissed; nothing it holds is needed."""
        self.ended = True
        if self.connection.closed:
            self._process.join(GOODBYE_SECONDS)
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _died(self) -> Record | None:
        self.ended = True
        self._process.join(10.0)
        how = manner(self._process.exitcode)
        said = _tail(self._log)
        if not self.ready:
            raise WorkerError(f"a worker process could not start ({how}):\n{said or 'no message'}")
        return self._lost(Outcome("error", f"worker died: {how}", notes=(said,) if said else ()))

    def _lost(self, outcome: Outcome) -> Record | None:
        running, self._running = self._running, None
        if running is None:  # it died between cells
            return None
        return make_record(
            running.cell, outcome, device=self.setup.device, threads=self.setup.threads,
            submitter=self.setup.submitter, started_at=running.started_at,
            wall_seconds=time.monotonic() - running.began,
        )  # fmt: skip


def _start(setup: Setup, log: Path) -> tuple[Connection[Any, Any], ForkServerProcess]:
    context = multiprocessing.get_context("forkserver")
    # Has an effect once per program, before the first worker; what is missing is imported later.
    context.set_forkserver_preload(["torch", "timm", "normbench.engine.serve", *setup.imports])
    ours, theirs = context.Pipe()
    process = context.Process(
        target=serve, args=(theirs, setup, str(log)), name="normbench-worker"
    )  # not a daemon: those may not have children, and a data loader has
    with no_main():
        process.start()
    theirs.close()
    return ours, process


@contextlib.contextmanager
def no_main() -> Iterator[None]:
    """Keep multiprocessing from running the user's script again in every worker.

    Workers need nothing from it, and a script that calls `normbench.run` without the
    `if __name__ == "__main__"` guard would start workers in its workers.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def manner(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    hint = "; the system kills so when memory runs out" if name == "SIGKILL" else ""
    return f"signal {-exitcode} ({name}{hint})"


def _tail(log: Path, lines: int = 40) -> str:
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    return short_paths("\n".join(text.strip().splitlines()[-lines:]))
