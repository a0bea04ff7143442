"""Task `throughput`: how long a model takes with a method, against the same model with batch norm.

Protocol 1. The method's model and the reference, batch norm in the same slots of the same weights,
are run in turns in one process on the same batch of random images, after a warm-up until the times
have settled. `ratio` is the median over rounds of the method's time over the reference's, with the
interval of normbench.timing.ratio; above 1 the method is slower. On CUDA the work is timed as
Python launches it and, with the prefix `graph_`, as a CUDA graph, in which nothing waits for
Python. The null test is the cell of `batch_norm` itself.

Passes of their own find the share of the time that the normalizations take (normbench.timing.
norm_share) and, where NVML tells, the energy of a run. Elements and bytes of the normalizations'
inputs are counted, not measured: FLOPs say nothing of layers that wait for memory.

The cell's config: `mode` (normbench.timing.models.MODES), `layout`, `image_size`, `compile` (both
models by torch.compile), `threads` (of the CPU).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normbench.cells import Cell
from normbench.tasks.outcome import Outcome, out_of_memory
from normbench.timing.allocator import memory_kept
from normbench.timing.contestants import OURS
from normbench.timing.entry import Entry
from normbench.timing.machine import check_precision, pinned, with_precision, within_memory
from normbench.timing.models import (
    CONDITIONS,
    MODES,
    NUMBERS,
    REFERENCE,
    Prepared,
    Work,
    base_model,
    norm_sizes,
    prepared,
    slot_modules,
)
from normbench.timing.norm_share import norm_share
from normbench.timing.nvml import Nvml, at_work
from normbench.timing.options import check_options
from normbench.timing.peaks import in_use
from normbench.timing.ratio import GRAPH, LAUNCHED, PREFIX, contest_metrics
from normbench.timing.rounds import in_turns
from normbench.timing.stopwatch import Stopwatch, Timer, as_users_run, stopwatch
from normbench.timing.warm_up import WarmUp, warm_up

PROTOCOL = 1

LEAST_ROUNDS, SECONDS = 9, 1.2
"""Of one contest. Nine rounds give an interval that leaves out the extremes."""

OPTIONS = {**CONDITIONS, "mode": tuple(MODES), "compile": (False, True)}

Progress = Callable[[float], None]


def run(
    cell: Cell,
    device: torch.device,
    progress: Progress,
    watch: Callable[[torch.device], Stopwatch] = stopwatch,
) -> Outcome:
    """Measure one cell. A reference that fails leaves the method's own times.

    Raises:
        OptionError: for a mode, layout, size or precision that there is not.
        MachineError: for a precision or number of threads that this machine does not have.
        SurgeryError: for a model without slots, or one that does not run at this size.
    """
    check_options(cell, OPTIONS, NUMBERS)
    check_precision(cell.precision, device)
    torch._dynamo.reset()  # what earlier cells compiled counts against dynamo's limits
    with (
        pinned(cell.config["threads"], device), within_memory(device), as_users_run(),
        with_precision(cell.precision), memory_kept(),
    ):  # fmt: skip
        contest = _Contest(cell, device, watch(device))
        with contest.clock.here():
            return contest.outcome(progress)


@dataclass
class _Contest:
    """Both models of a cell, and what is found of them."""

    cell: Cell
    device: torch.device
    clock: Stopwatch
    works: dict[str, Work] = field(default_factory=dict)
    launched: dict[str, Timer] = field(default_factory=dict)
    models: dict[str, Prepared] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def outcome(self, progress: Progress) -> Outcome:
        in_use(self.device)  # gives back what cells before this one left
        base = base_model(self.cell, self.device)
        self._enter(OURS, base, self.cell.method, self.cell.params)
        progress(0.2)
        self._enter(REFERENCE, base, REFERENCE, {})
        del base
        progress(0.4)
        self._take_turns(LAUNCHED, self.launched)
        progress(0.6)
        self._count()
        if self.device.type == "cuda":
            self._weigh_energy()
            progress(0.8)
        if self.clock.graphs:  # late: a capture that fails leaves traces as well
            self._take_turns(GRAPH, self._replayed())
        progress(0.9)
        self._look_inside()  # last: a profiler leaves traces
        trials = tuple(entry.trial(name) for name, entry in self.entries.items())
        samples = tuple(self.entries[OURS].samples[LAUNCHED])
        ours = self.models[OURS]
        notes = (*self.notes, *ours.report.notes)
        return Outcome(
            "ok", metrics=self.metrics, trials=trials, samples=samples,
            slots=ours.report.to_json(), notes=notes, spoilt=self.clock.spoilt,
        )  # fmt: skip

    def _enter(self, name: str, base: nn.Module, method: str, params: Mapping[str, Any]) -> None:
        """Build a contestant and run it once, alone: what does not fit then does not fit."""
        entry = self.entries[name] = Entry()
        try:
            ready = prepared(base, method, params, self.cell, self.device)
            work = Work(ready.model, self.cell, self.device)
            if self.cell.config["compile"]:
                ready.model.compile(dynamic=False)
                began = time.perf_counter()
                with torch._inductor.config.patch(force_disable_caches=True):
                    work.run()
                entry.metrics["compile_seconds"] = time.perf_counter() - began
            self.launched[name] = self.clock.launched(work.run, clear=False)  # runs it
        except Exception as error:
            if name == OURS:
                raise
            entry.failed("not started", error)
            self.notes.append(f"no ratio: the reference failed: {entry.problems[-1]}")
            return
        self.works[name], self.models[name] = work, ready

    def _replayed(self) -> dict[str, Timer]:
        """Timers of the CUDA graphs; that there can be none is a result, and no failure."""
        timers: dict[str, Timer] = {}
        for name, work in self.works.items():
            try:
                timers[name] = self.clock.replayed([work.run])
            except Exception as error:
                self.entries[name].failed(GRAPH, error)
                self.notes.append(f"{name}: {self.entries[name].problems[-1]}")
        return timers

    def _take_turns(self, mode: str, timers: Mapping[str, Timer]) -> None:
        if OURS not in timers:
            return
        try:
            settled, taken = _contest(timers)
        except (RuntimeError, MemoryError) as error:
            if REFERENCE not in timers or not out_of_memory(error):
                raise
            # Each fits alone, the two do not: the method's own times are what is left.
            self.entries[REFERENCE].failed(mode, error)
            self.notes.append("no ratio: the model and its reference do not fit side by side")
            for both in (self.works, self.models, self.launched):
                both.pop(REFERENCE, None)
            in_use(self.device)
            settled, taken = _contest({OURS: timers[OURS]})
        for name, seconds in taken.items():
            self.entries[name].take(mode, seconds)
        self.metrics |= contest_metrics(taken[OURS], taken.get(REFERENCE), PREFIX[mode])
        if mode == LAUNCHED:
            self._judge(taken[OURS], settled)

    def _judge(self, seconds: list[float], settled: Mapping[str, WarmUp]) -> None:
        """How far the times can be trusted."""
        half = len(seconds) // 2
        drift = statistics.median(seconds[-half:]) / statistics.median(seconds[:half])
        self.metrics |= {
            "images_per_second": self.cell.batch_size / self.metrics["seconds"],
            "warm_up_runs": settled[OURS].runs,
            "drift": drift,
        }
        for name, warm in settled.items():
            if not warm.settled:
                self.notes.append(f"{name}: times had not settled after {warm.runs} runs")

    def _count(self) -> None:
        ours, cell = self.models[OURS], self.cell
        self.metrics |= norm_sizes(ours.report, cell)
        self.metrics["parameters"] = sum(p.numel() for p in ours.model.parameters())
        if ours.folded is not None:
            self.metrics |= {"folded": ours.folded, "not_folded": len(ours.unfolded)}
        if "compile_seconds" in self.entries[OURS].metrics:
            self.metrics["compile_seconds"] = self.entries[OURS].metrics["compile_seconds"]

    def _look_inside(self) -> None:
        if self.cell.config["compile"]:
            return  # compiled code has no modules whose share could be told
        ours = self.models[OURS]
        slots = slot_modules(ours)
        try:
            share = norm_share(ours.model, list(slots.values()), self.works[OURS].run, self.device)
        except Exception as error:  # the times are worth more than the share
            self.notes.append(f"norm share not measured: {type(error).__name__}: {error}")
        else:
            self.metrics["norm_share"] = share

    def _weigh_energy(self) -> None:
        try:
            nvml = Nvml(self.device)
            for name, work in self.works.items():
                found = at_work(nvml, work.run, lambda: torch.cuda.synchronize(self.device))
                if name == OURS:
                    self.metrics |= found
                elif "energy_joules" in found:
                    self.metrics["reference_energy_joules"] = found["energy_joules"]
        except Exception as error:  # the times are worth more
            self.notes.append(f"clocks, power and energy not recorded: {error}")


def _contest(timers: Mapping[str, Timer]) -> tuple[dict[str, WarmUp], dict[str, list[float]]]:
    """How each warmed up, and the times of the rounds."""
    settled = {name: warm_up(timer) for name, timer in timers.items()}
    return settled, in_turns(timers, seconds=SECONDS, least=LEAST_ROUNDS)
