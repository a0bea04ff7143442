"""Task `step`: a training step of a whole model with a method against the untouched model.

Protocol 2. The training step of task `throughput`, on random images under autocast of the cell's
precision, each contestant in turn: `launched` by Python and, on CUDA, replayed as a
CUDA `graph`. Beside the times: what autograd keeps for the backward (each storage once, parameters
and their casts left out), and the most memory a step takes beyond parameters and optimizer. A
ratio is the peer's figure over ours.

The cell's config: `layout`, `image_size`, `peers` (`PEERS`), `modes` (empty: memory alone).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from normbench import surgery
from normbench.cells import Cell
from normbench.tasks.outcome import Outcome
from normbench.timing.contestants import OURS
from normbench.timing.entry import Entry, record_metrics
from normbench.timing.models import Work, base_model, prepared
from normbench.timing.rounds import in_turns
from normbench.timing.saved import saved_bytes
from normbench.timing.stopwatch import Stopwatch, Timer, as_users_run, stopwatch

PROTOCOL = 2

PEERS = {
    "eager": "the model as timm builds it",
    "compiled": "torch.compile of it",
    "compiled_ours": "torch.compile of ours",
}
"""What a cell may name in `peers`."""

MODES = ("launched", "graph")
SECONDS, LEAST = 3.0, 10
"""Of the rounds of one mode."""


def run(
    cell: Cell,
    device: torch.device,
    progress: Callable[[float], None],
    watch: Callable[[torch.device], Stopwatch] = stopwatch,
) -> Outcome:
    """Measure one cell. A peer that fails does not stop the others; our own failure does."""
    torch._dynamo.reset()  # what earlier cells compiled counts against dynamo's limits
    names, clock = [OURS, *cell.config["peers"]], watch(device)
    modes = [m for m in cell.config["modes"] if clock.graphs or m != "graph"]
    entries: dict[str, Entry] = {}
    works: dict[str, Work] = {}
    with as_users_run(), clock.here():
        models, report = _models(cell, device)
        for done, name in enumerate(names):
            entries[name] = entry = Entry()
            try:
                works[name] = _prepared(name, models, cell, clock, entry)
            except Exception as error:
                if name == OURS:
                    raise
                entry.failed("not started", error)
            progress((done + 1) / (len(names) + len(modes)))
        for done, mode in enumerate(modes, len(names)):
            _take_turns(mode, works, entries, clock)
            progress((done + 1) / (len(names) + len(modes)))
    samples = entries[OURS].samples.get(f"{modes[-1]}_step", []) if modes else []
    trials = tuple(entry.trial(name) for name, entry in entries.items())
    metrics = record_metrics(entries, OURS)
    return Outcome(
        "ok", metrics=metrics, trials=trials, samples=tuple(samples),
        slots=report.to_json(), notes=tuple(report.notes), spoilt=clock.spoilt,
    )  # fmt: skip


def _models(cell: Cell, device: torch.device) -> tuple[dict[str, nn.Module], surgery.SwapReport]:
    """`eager` and `ours`, from the same weights."""
    model = base_model(cell, device)
    swapped = prepared(model, cell.method, cell.params, cell, device)
    return {"eager": model, OURS: swapped.model}, swapped.report


def _prepared(
    name: str, models: dict[str, nn.Module], cell: Cell, clock: Stopwatch, entry: Entry
) -> Work:
    """A contestant after its first steps, its memory measured."""
    model = models[OURS if name in (OURS, "compiled_ours") else "eager"]
    if name.startswith("compiled"):
        model = copy.deepcopy(model)
        model.compile()
    work = Work(model, cell, clock.device)
    if not name.startswith("compiled"):  # what is compiled hides from the hooks
        entry.metrics["saved_bytes"] = saved_bytes(model, work.loss).total
    if peak := clock.peak_bytes(work.step):
        entry.metrics["peak_memory_bytes"] = peak
    return work


def _take_turns(
    mode: str, works: dict[str, Work], entries: dict[str, Entry], clock: Stopwatch
) -> None:
    timers: dict[str, Timer] = {}
    for name, work in works.items():
        try:
            if mode == "graph":
                timers[name] = clock.replayed([work.step])
            else:
                timers[name] = clock.launched(work.step, clear=False)
        except Exception as error:
            if name == OURS:
                raise
            entries[name].failed(mode, error)
    for name, seconds in in_turns(timers, seconds=SECONDS, least=LEAST).items():
        entries[name].take(f"{mode}_step", seconds)
