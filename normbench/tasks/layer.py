"""Task `layer`: time one layer of a method against nn.BatchNorm2d, at one shape.

Protocol 1. A training forward (`part: forward`), or forward and backward (`both`), of the layer and
of batch norm, each followed by the activation (which a method that owns it applies itself), on the
same input, in interleaved rounds of one process. `ratio` is the median of the rounds' ratios of the
method's time to batch norm's, with its 95% interval: above 1 the method is slower. Schedules are
over: Batch Renorm has its full limits. Neither what a method does to weights or model is in it, nor
what fetching memory from the system costs (normbench/timing/allocator.py).

On CUDA the times are those of the device between two events, as Python launches the work, and, as
`graph_…`, replayed from a CUDA graph. On a CPU they are wall time.

With `processes: 2` two processes work in step, each on a batch of its own, and the first takes the
times; `communication_seconds` is what the method's collectives take alone, its median, and
`communication_share` that over the method's.

The cell's config: `part`, `channels`, `height`, `width`, `layout`, `threads`, `activation` (`relu`
or `none`), `processes`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from normbench import registry
from normbench.cells import Cell
from normbench.tasks.outcome import Outcome
from normbench.timing.allocator import memory_kept
from normbench.timing.case import DTYPES, LAYOUTS
from normbench.timing.contestants import OURS
from normbench.timing.entry import Entry
from normbench.timing.in_step import in_step
from normbench.timing.layers import COMMUNICATION, REFERENCE, Contest, works
from normbench.timing.machine import pinned
from normbench.timing.options import OptionError, check_options
from normbench.timing.ratio import GRAPH, LAUNCHED, PREFIX, contest_metrics
from normbench.timing.rounds import Times, in_turns
from normbench.timing.stopwatch import Stopwatch, Timer, as_users_run, stopwatch

PROTOCOL = 1

CELL_PARTS = ("forward", "both")
ACTIVATIONS = ("relu", "none")
TIMEOUT_SECONDS = 300
WARM_UP = 5
"""Untimed rounds before the first."""

LEAST, MOST, SECONDS = 15, 200, 1.0
"""Rounds; between the two it is as many as fit into the seconds."""


OPTIONS = {
    "part": CELL_PARTS, "activation": ACTIVATIONS, "layout": tuple(LAYOUTS),
    "precision": tuple(DTYPES), "processes": (1, 2),
}  # fmt: skip
NUMBERS = ("batch_size", "channels", "height", "width", "threads")


def cell(
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    shape: tuple[int, int, int, int],
    part: str = "both",
    activation: str = "relu",
    layout: str = "nchw",
    precision: str = "fp32",
    threads: int = 1,
    processes: int = 1,
) -> Cell:
    """The cell that times a layer.

    Args:
        method: catalogue name.
        params: parameters that differ from the defaults.
        shape: N, C, H, W of its input.
        part: of `CELL_PARTS`.
        activation: of `ACTIVATIONS`.
        layout: `nchw` or `nhwc`.
        precision: type of the activations; parameters are float32.
        threads: CPU threads.
        processes: 1, or 2 for the communication of sync_batch_norm.

    Raises:
        OptionError: for another part, activation, layout, precision or number of processes, or
            a size below 1.
        RegistryError: for an unknown method or parameter.
    """
    batch, channels, height, width = shape
    config = {
        "part": part, "channels": channels, "height": height, "width": width, "layout": layout,
        "threads": threads, "activation": activation, "processes": processes,
        "timeout_seconds": TIMEOUT_SECONDS,
    }  # fmt: skip
    made = Cell(
        suite="layers", task="layer", method=method,
        params=registry.resolve_params(method, params), variant=registry.variant(method, params),
        model="layer", model_args={}, dataset="none", dataset_args={}, batch_size=batch, seed=0,
        precision=precision, config=config,
    )  # fmt: skip
    check(made)
    return made


def check(cell: Cell) -> None:
    """Refuse what the task does not measure.

    Raises:
        OptionError: with the option, its value and what it may be.
    """
    check_options(cell, OPTIONS, NUMBERS)
    if cell.config["processes"] == 2 and cell.method != "sync_batch_norm":
        raise OptionError(f"{cell.method} says nothing to other processes; sync_batch_norm does")


def run(
    cell: Cell,
    device: torch.device,
    progress: Callable[[float], None],
    watch: Callable[[torch.device], Stopwatch] = stopwatch,
) -> Outcome:
    """Measure one cell. Where batch norm fails there is no ratio; the method's is raised."""
    check(cell)
    with conditions(cell, device):
        if cell.config["processes"] > 1:
            return _in_step(cell, device, progress)
        return _alone(cell, watch(device), progress)


@contextlib.contextmanager
def conditions(cell: Cell, device: torch.device) -> Iterator[None]:
    """The cell's number of CPU threads, kernels chosen as outside of cells, memory kept.

    Raises:
        MachineError: for more threads than cores.
    """
    # Two processes on the same cores would wait for each other.
    cores = (
        pinned(cell.config["threads"], device)
        if cell.config["processes"] == 1
        else contextlib.nullcontext()
    )
    with cores, as_users_run(), memory_kept():
        yield


def _alone(cell: Cell, watch: Stopwatch, progress: Callable[[float], None]) -> Outcome:
    modes = (LAUNCHED, GRAPH) if watch.graphs else (LAUNCHED,)
    entries: dict[str, Entry] = {}
    runs = {}
    with watch.here():
        for name, make in works(cell, watch.device).items():
            entries[name] = Entry()
            with _told(name, entries, "not started"):
                runs[name] = work = make()
                for _ in range(WARM_UP):
                    work()
        for done, mode in enumerate(modes):
            progress(done / len(modes))
            timers: dict[str, Timer] = {}
            for name, work in runs.items():
                # Some methods decide on the host: no graph can hold them, which fails no cell.
                with _told(name, entries, mode, also_ours=mode == GRAPH):
                    timers[name] = (
                        watch.replayed([work]) if mode == GRAPH
                        else watch.launched(work, clear=False)
                    )  # fmt: skip
            if OURS not in timers:
                continue
            least = rounds(sum(timer() for timer in timers.values()))
            for name, seconds in in_turns(timers, seconds=0, least=least).items():
                entries[name].take(mode, seconds)
    return dataclasses.replace(outcome(entries), spoilt=watch.spoilt)


@contextlib.contextmanager
def _told(
    name: str, entries: Mapping[str, Entry], what: str, also_ours: bool = False
) -> Iterator[None]:
    """Note a failure of the reference; ours is the cell's, unless it may be noted as well."""
    try:
        yield
    except Exception as error:
        if name == OURS and not also_ours:
            raise
        entries[name].failed(what, error)


def _in_step(cell: Cell, device: torch.device, progress: Callable[[float], None]) -> Outcome:
    with in_step(cell, device) as pair:
        least = rounds(warmed_up(pair))
        progress(0.5)
        timers = {name: functools.partial(pair.seconds, name) for name in pair.names}
        taken = in_turns(timers, seconds=0, least=least)
    return outcome(entries_of(taken))


def warmed_up(contest: Contest) -> float:
    """Run the untimed rounds; seconds of the last."""
    for _ in range(WARM_UP):
        last = sum(contest.seconds(name) for name in contest.names)
    return last


def rounds(seconds: float) -> int:
    """How many rounds to take where one takes so many seconds."""
    return min(MOST, max(LEAST, int(SECONDS / seconds)))


def entries_of(launched: Mapping[str, list[float]]) -> dict[str, Entry]:
    """Entries of times in seconds by contestant, as Python launched the work."""
    entries = {name: Entry() for name in launched}
    for name, seconds in launched.items():
        entries[name].take(LAUNCHED, seconds)
    return entries


def outcome(entries: Mapping[str, Entry]) -> Outcome:
    """The record's metrics, trials and samples from the times of its contestants.

    Args:
        entries: times under `LAUNCHED` and `GRAPH` of `OURS`, and, where they could be taken, of
            `REFERENCE` and `COMMUNICATION`, as many of each.

    Raises:
        ValueError: if contestants do not have as many times, or one is not above 0.
    """
    metrics: dict[str, float] = {}
    for mode, prefix in PREFIX.items():
        ours = entries[OURS].samples.get(mode, [])
        if not ours:
            continue
        reference = entries[REFERENCE].samples.get(mode) if REFERENCE in entries else None
        metrics |= contest_metrics(ours, reference, prefix)
    if COMMUNICATION in entries:
        alone = Times.of(entries[COMMUNICATION].samples[LAUNCHED]).median
        metrics["communication_seconds"] = alone
        metrics["communication_share"] = alone / metrics["seconds"]
    return Outcome(
        "ok", metrics=metrics,
        trials=tuple(entry.trial(name) for name, entry in entries.items()),
        samples=tuple(entries[OURS].samples[LAUNCHED]),
        notes=tuple(
            f"{name}: {problem}" for name, entry in entries.items() for problem in entry.problems
        ),
    )  # fmt: skip
