"""A run from start to end: plan, hand cells out, store what comes back, tell whoever watches."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normbench import registry, spool, tasks
from normbench.cells import Cell, Record
from normbench.engine import environment
from normbench.engine.events import Event, Finished, Interrupted, Planned, Progress, Started
from normbench.engine.planning import RunPlan, plan, results_folder
from normbench.engine.pool import run_inline, run_pool
from normbench.engine.serve import Setup
from normbench.spool import FAILED

if TYPE_CHECKING:
    from normbench.store import Store
    from normbench.suites import Suite
    from normbench.tracking import Sink

COMPACT_AT = 500
"""Spool files at which a run compacts before its end: reading them one by one gets slow."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass(frozen=True)
class RunSummary:
    """What became of the cells asked for.

    Attributes:
        total: cells asked for.
        skipped: those with a record from an earlier run.
        measured: of this run, those that are a measurement (`ok`, `diverged`, `oom`).
        failed: of this run, those that ended `error` or `timeout`.
        records: all there are for these cells, earlier ones included.
        interrupted: whether Ctrl-C ended the run.
        problems: what went wrong beside the cells, one sentence each.
    """

    total: int
    skipped: int
    measured: int
    failed: int
    records: tuple[Record, ...]
    interrupted: bool
    problems: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0; 130 after Ctrl-C; 1 if a cell failed or none was measured, now or earlier."""
        if self.interrupted:
            return INTERRUPTED
        failed = any(record.status in FAILED for record in self.records)
        return int(failed or not any(record.measured for record in self.records))


def run(
    work: str | os.PathLike[str] | Suite | Sequence[Cell],
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    threads: int = 1,
    filters: Iterable[str] = (),
    retry_failed: bool = False,
    sinks: Sequence[Sink] = (),
    on_event: Callable[[Event], None] | None = None,
    submitter: str | None = None,
    elsewhere: Iterable[Record] = (),
) -> RunSummary:
    """Run a suite's cells, except those that have a record from this hardware class.

    Every record is on disk before anything else hears of it. Ctrl-C stops the run and returns;
    calling it again continues.

    Args:
        work: path of a suite file, a suite, or cells.
        out: results folder; None takes `NORMBENCH_RESULTS`, else `results`.
        device: `auto`, `cpu` or `cuda`.
        workers: processes; 0 runs cells in this one, where a crash is not survived and a hanging
            cell not stopped. None takes one per core on a CPU, one on a GPU.
        threads: CPU threads of each. Two processes of one thread beat one of two.
        filters: `KEY=VALUE` or `KEY=VALUE,VALUE` over fields of the cell.
        retry_failed: run cells again that ended `error` or `timeout`.
        sinks: told of each record after it is stored. Whoever opened them closes them.
        on_event: called with every event, in this thread.
        submitter: who measures; None takes `NORMBENCH_SUBMITTER`, else `local`.
        elsewhere: records of any hardware that expected durations fall back to.

    Raises:
        ValueError: for a user's mistake, before anything runs, with one clear sentence.
        StoreError: if records cannot be written; those written are kept.
    """
    from normbench.store import Store  # Polars: only where records are read

    planned = plan(
        work, out=out, device=device, filters=filters, retry_failed=retry_failed,
        workers=workers, elsewhere=elsewhere,
    )  # fmt: skip
    who = environment.submitter() if submitter is None else submitter
    setup = Setup(planned.device, threads, who, _modules(planned.to_run))
    return _Run(planned, Store(results_folder(out)), setup, sinks, on_event or _ignore).go()


class _Run:
    """The state of one run: what runs, what is done, what went wrong."""

    def __init__(
        self,
        plan: RunPlan,
        store: Store,
        setup: Setup,
        sinks: Sequence[Sink],
        tell: Callable[[Event], None],
    ) -> None:
        self.plan = plan
        self.store = store
        self.setup = setup
        self.sinks = sinks
        self.tell = tell
        self.records: list[Record] = []
        self.problems = list(plan.problems)
        self.to_do = dict(zip(plan.ids, plan.to_run, strict=True))
        self.ids = {id(cell): key for key, cell in self.to_do.items()}
        self.running: dict[str, float] = {}  # cell id to the fraction done
        self.spooled = 0
        self.began = time.monotonic()

    def go(self) -> RunSummary:
        plan = self.plan
        if plan.to_run:
            self.store.check_writable()
            self.spooled = len(spool.list_files(self.store.spool_folder))
        counts = (plan.total, plan.skipped, len(plan.to_run))
        where = (plan.workers, plan.device.type)
        self.tell(Planned(*counts, plan.expected_seconds, *where, plan.borrowed, plan.problems))
        interrupted = False
        try:
            with contextlib.closing(self._records()) as records:
                for record in records:
                    self._take(record)
            self._compact()
        except KeyboardInterrupt:
            interrupted = True
            self.tell(Interrupted(self._done(), plan.total, len(self.running)))
        return self._summary(interrupted)

    def _records(self) -> Generator[Record]:
        if self.plan.workers == 0:
            return run_inline(self.plan.to_run, self.setup, self._notify)
        return run_pool(self.plan.to_run, self.setup, self.plan.workers, self._notify)

    def _notify(self, event: Started | Progress) -> None:
        key = self.ids[id(event.cell)]
        self.running[key] = event.fraction if isinstance(event, Progress) else 0.0
        self.tell(event)

    def _take(self, record: Record) -> None:
        self.store.append(record)
        self.records.append(record)
        self.to_do.pop(record.cell_id, None)
        self.running.pop(record.cell_id, None)
        if record.measured:
            self.plan.costs.observe(record.cell, record.wall_seconds)
        for sink in self.sinks:
            try:
                sink.write(record)
            except Exception as error:  # whatever a sink does, the record is safe: go on
                self.problems.append(f"{type(sink).__name__} lost {record.record_id}: {error}")
        elapsed = time.monotonic() - self.began
        self.tell(Finished(record, self._done(), self.plan.total, self._eta(), elapsed))
        self.spooled += 1
        if self.spooled >= COMPACT_AT:
            self._compact()

    def _eta(self) -> float | None:
        left = ((cell, 1.0 - self.running.get(key, 0.0)) for key, cell in self.to_do.items())
        return self.plan.costs.total(left, self.plan.workers)

    def _done(self) -> int:
        return self.plan.skipped + len(self.records)

    def _compact(self) -> None:
        """A convenience for readers: if it fails, the spool still has everything."""
        self.spooled = 0
        try:
            self.store.compact()
        except spool.StoreError as error:
            self.problems.append(f"records stay in the spool: {error}")

    def _summary(self, interrupted: bool) -> RunSummary:
        return RunSummary(
            total=self.plan.total,
            skipped=self.plan.skipped,
            measured=sum(record.measured for record in self.records),
            failed=sum(record.status in FAILED for record in self.records),
            records=(*self.plan.earlier, *self.records),
            interrupted=interrupted,
            problems=tuple(self.problems),
        )


def _modules(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Modules of the cells' methods and tasks, which a worker loads before its first cell.

    Those of plugins, and of methods a program registers itself, are found in no other way.
    """
    methods = {registry.get(name).module for name in {cell.method for cell in cells}}
    homes = {tasks.TASKS[name] for name in {cell.task for cell in cells}}
    return tuple(sorted((methods | homes) - {"__main__"}))


def _ignore(event: Event) -> None:
    return None
