"""Task `kernel`: time the layer of a method with kernels against its peers, at one shape.

Protocol 1. Training forward, backward, and both, each contestant in turn, in three modes:

- `cleared`: launched by Python, after the caches were overwritten;
- `graph`: a CUDA graph over as many sets of inputs as hold four times the L2 cache, so that each
  is read from memory, and nothing waits for Python;
- `warm`: a CUDA graph over one set, again and again.

Where there are no graphs (a CPU) there is one mode, `launched`. A device copy is timed in the same
rounds: `…_share_of_copy` is bytes that must be moved / time / bytes per second of the copy. A ratio
is the peer's median over ours. Every contestant is a trial of the record, with its raw times.

The cell's config: `form`, `channels`, `height`, `width`, `layout`, `peers` (normbench.timing).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from normbench.cells import Cell
from normbench.kernels.fused.launch import Launch, recording
from normbench.tasks.outcome import Outcome
from normbench.timing.case import PARTS, Case
from normbench.timing.contestants import OURS, Contestant, build
from normbench.timing.entry import Entry, record_metrics
from normbench.timing.rounds import Times, in_turns
from normbench.timing.stopwatch import (
    COPY_BYTES,
    Run,
    Stopwatch,
    Timer,
    as_users_run,
    sets_of,
    stopwatch,
)

PROTOCOL = 1

COPY = "copy"
WARM_RUNS = 10

Progress = Callable[[float], None]


def run(
    cell: Cell,
    device: torch.device,
    progress: Progress,
    watch: Callable[[torch.device], Stopwatch] = stopwatch,
) -> Outcome:
    """Measure one cell. A peer that fails does not stop the others; our own failure does."""
    torch._dynamo.reset()  # what earlier cells compiled counts against dynamo's limits
    # Forward once, backward many times: what is compiled must leave alone what it saved.
    with as_users_run(), torch._functorch.config.patch(donated_buffer=False):
        return _Contest(cell, watch(device)).outcome(progress)


class _Contest:
    """The contestants of one cell, and what is found of them."""

    def __init__(self, cell: Cell, watch: Stopwatch) -> None:
        self.cell, self.watch, self.case = cell, watch, Case.of(cell)
        self.modes = ("cleared", "graph", "warm") if watch.graphs else ("launched",)
        self.contestants: dict[str, Contestant] = {}
        self.entries: dict[str, Entry] = {}
        self.launches: dict[str, list[Launch]] = {}
        self.copies: list[float] = []

    def outcome(self, progress: Progress) -> Outcome:
        names = [OURS, *self.cell.config["peers"]]
        turns = [(mode, part) for mode in self.modes for part in PARTS]
        for done, name in enumerate(names):
            self._examine(name)
            progress((done + 1) / (len(names) + len(turns)))
        with self.watch.here():
            copy = self.watch.copy()
        for done, (mode, part) in enumerate(turns, len(names)):
            self._take_turns(mode, part, copy)
            progress((done + 1) / (len(names) + len(turns)))
        main = "graph" if "graph" in self.modes else self.modes[0]
        return Outcome(
            "ok", metrics=self._metrics(),
            trials=tuple(entry.trial(name) for name, entry in self.entries.items()),
            samples=tuple(self.entries[OURS].samples[f"{main}_both"]), spoilt=self.watch.spoilt,
        )  # fmt: skip

    def _examine(self, name: str) -> None:
        """Build a contestant, compile what it compiles, count kernels and memory."""
        entry = self.entries[name] = Entry()
        watch, method, params = self.watch, self.cell.method, self.cell.params
        try:
            with watch.here():
                found = build(name, method, params, self.case, watch.device)
                entry.metrics |= self._counts(found, entry)
        except Exception as error:
            if name == OURS:
                raise
            entry.failed("not started", error)
        else:
            self.contestants[name] = found

    def _counts(self, found: Contestant, entry: Entry) -> dict[str, float]:
        given, layer = found.case.inputs(self.watch.device), found.layer
        with recording() as forward:
            y = given.forward(layer)
        with recording() as backward:
            given.backward(layer, y, keep=True)
        if found.name == OURS:
            self.launches = {"forward": forward, "backward": backward}
        counts: dict[str, float] = {}
        try:
            counts["forward_kernels"] = self.watch.kernels(lambda: given.forward(layer))
            again = functools.partial(given.backward, layer, y, keep=True)
            counts["backward_kernels"] = self.watch.kernels(again)
            del again
        except Exception as error:  # the times are worth more than the counts
            entry.failed("kernels not counted", error)
        del y  # holds what was saved for the backward
        counts["peak_memory_bytes"] = self.watch.peak_bytes(lambda: given.both(layer))
        return {name: count for name, count in counts.items() if count}

    def _take_turns(self, mode: str, part: str, copy: Timer) -> None:
        """Rounds of all contestants, with the copy among them."""
        timers: dict[str, Timer] = {}
        for name, contestant in self.contestants.items():
            try:
                timers[name] = self._timer(contestant, mode, part)
            except Exception as error:
                if name == OURS:
                    raise
                self.entries[name].failed(f"{mode} {part}", error)
        taken = in_turns({**timers, COPY: copy})
        self.copies += taken.pop(COPY)
        for name, seconds in taken.items():
            self.entries[name].take(f"{mode}_{part}", seconds)

    def _timer(self, contestant: Contestant, mode: str, part: str) -> Timer:
        watch = self.watch
        with watch.here():
            sets = sets_of(contestant.case, watch.l2_bytes) if mode == "graph" else 1
            runs = list(self._works(contestant, part, sets))
            if mode == "graph":
                return watch.replayed(runs, keep=True)
            if mode == "warm":
                return watch.replayed(runs * WARM_RUNS)
            return watch.launched(runs[0], clear=mode == "cleared")

    def _works(self, contestant: Contestant, part: str, sets: int) -> Iterator[Run]:
        layer = contestant.layer
        for _ in range(sets):
            given = contestant.case.inputs(self.watch.device)
            if part == "forward":
                yield functools.partial(given.forward, layer)
            elif part == "backward":
                yield functools.partial(given.backward, layer, given.forward(layer), keep=True)
            else:
                yield functools.partial(given.both, layer)

    def _metrics(self) -> dict[str, float]:
        copy = Times.of(2 * COPY_BYTES / seconds for seconds in self.copies)
        metrics = record_metrics(self.entries, OURS) | {
            "copy_bytes_per_second": copy.median,
            "copy_p20_bytes_per_second": copy.p20,
            "copy_p80_bytes_per_second": copy.p80,
            "sets": sets_of(self.case, self.watch.l2_bytes),
        }
        for part, launches in self.launches.items():
            metrics[f"{part}_launches"] = len(launches)
        for part in PARTS:
            moved = self.case.bytes_to_move(part, self._resident())
            metrics[f"{part}_bytes_to_move"] = moved
            for mode in self.modes:
                seconds = metrics[f"{mode}_{part}_seconds"]
                metrics[f"{mode}_{part}_share_of_copy"] = moved / seconds / copy.median
        return metrics

    def _resident(self) -> bool:
        """Whether a kernel that keeps its input on the chip was launched."""
        launched = [launch for launches in self.launches.values() for launch in launches]
        return any(launch.kernel.fn.__module__.endswith("resident") for launch in launched)
