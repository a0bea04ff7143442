"""Settings of the batch norm kernels tried on the main shapes: `make gpu STAGE=kernel-tune`.

One constant is changed at a time, then the best of each together. Prints a table; the library
tunes nothing by itself, and nothing here changes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from kernel_cells import MAIN_SHAPES, Slot, resnet50_slots

from normbench.kernels.fused import batch_plans, tiles
from normbench.timing.case import Case
from normbench.timing.contestants import OURS, build
from normbench.timing.rounds import in_turns
from normbench.timing.stopwatch import Run, Stopwatch, as_users_run, sets_of, stopwatch

BATCHES = (32, 256, 8, 2)

CONSTANTS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "TILE": (tiles, (1024, 4096, 8192)),
    "PROGRAMS_PER_MULTIPROCESSOR": (tiles, (2, 8, 16)),
    "STAGES": (batch_plans, (1, 3, 4)),
    "warps": (None, (2, 8)),
    "LOOPED": (tiles, (0, 131072)),
    "RESIDENT": (tiles, (2048, 4096, 16384)),
    "COOPERATIVE": (batch_plans, (2, 4)),
}
"""Where a constant lives, and what it is changed to; `warps` are those of the streaming kernels.

4 programs of COOPERATIVE fit for ReLU; not for an activation that takes more than 128 registers.
"""

USUAL_MICROSECONDS = "µs"
FAILED = float("inf")

Setting = Mapping[str, int]
Times = dict[str, float]
"""Of one shape: time over that with the present constants by setting, and the latter itself."""


@contextlib.contextmanager
def applied(setting: Setting) -> Iterator[None]:
    """The kernels launched with other constants."""
    with contextlib.ExitStack() as undo:
        for name, value in setting.items():
            new: Any
            owner, new = CONSTANTS[name][0], value
            if owner is None:
                owner, name = batch_plans, "streaming_cut"
                new = functools.partial(_with_warps, tiles.streaming_cut, value)
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)
        undo.callback(batch_plans.plan.cache_clear)
        batch_plans.plan.cache_clear()
        yield


def _with_warps(cut: Callable[..., tiles.Cut], warps: int, *given: Any) -> tiles.Cut:
    return dataclasses.replace(cut(*given), warps=warps)


def sweep(
    state: Path, seconds: float, clock: Stopwatch | None = None, batches: Sequence[int] = BATCHES
) -> bool:
    """Try what `state` does not have yet and print all; False if time was up before the end."""
    end = time.monotonic() + seconds
    clock = stopwatch(torch.device("cuda")) if clock is None else clock
    found: dict[str, Times] = json.loads(state.read_text()) if state.exists() else {}
    main = [slot for slot in resnet50_slots() if slot.form != "none"][:MAIN_SHAPES]
    complete = True
    for batch, slot in ((b, s) for b in batches for s in main):
        times = found.setdefault(f"{batch}×{slot.channels}×{slot.size}² {slot.form}", {})
        while complete and (setting := _next(times)) is not None:
            times[label(setting)] = _ratio(slot, batch, setting, clock, times)
            state.write_text(json.dumps(found, indent=1, ensure_ascii=False))
            complete = time.monotonic() < end
    print(table(found))
    return complete


def _next(times: Times) -> Setting | None:
    """The first setting without a time: each change alone, then the best together."""
    changes = [{name: value} for name, (_, values) in CONSTANTS.items() for value in values]
    left = [change for change in changes if label(change) not in times]
    together = best_together(times)
    if left or label(together) in times or not together:
        return left[0] if left else None
    return together


def best_together(times: Times) -> dict[str, int]:
    """Of each constant the value that was fastest alone, where it saved at least 1%."""
    best: dict[str, int] = {}
    for name, (_, values) in CONSTANTS.items():
        known = {value: times.get(label({name: value}), 1.0) for value in values}
        value = min(known, key=known.__getitem__)
        if known[value] < 0.99:
            best[name] = value
    return best


def label(setting: Setting) -> str:
    """A setting in words."""
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def _ratio(slot: Slot, batch: int, setting: Setting, clock: Stopwatch, times: Times) -> float:
    """Forward and backward with a setting over that with the present constants, in turns."""
    case = Case(slot.form, (batch, slot.channels, slot.size, slot.size), "nhwc", "bf16")
    with as_users_run(), clock.here():
        layer = build(OURS, "batch_norm_triton", {}, case, clock.device).layer
        runs: list[Run] = [
            functools.partial(case.inputs(clock.device).both, layer)
            for _ in range(sets_of(case, clock.l2_bytes))
        ]
        try:
            usual = clock.replayed(runs, keep=True)
            with applied(setting):
                changed = clock.replayed(runs, keep=True)
        except Exception as error:  # more registers or shared memory than there are
            print(f"{slot.form}, {label(setting)}: {type(error).__name__}: {error}"[:300])
            return FAILED
        taken = in_turns({"usual": usual, "changed": changed})
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    times[USUAL_MICROSECONDS] = medians["usual"] * 1e6
    return medians["changed"] / medians["usual"]


def table(found: Mapping[str, Times]) -> str:
    """Per shape the present time and the best setting; then every setting's ratios."""
    lines = ["| shape | µs now | best setting | time over now |", "|---|---|---|---|"]
    for shape, times in found.items():
        ratios = {name: ratio for name, ratio in times.items() if name != USUAL_MICROSECONDS}
        if not ratios:
            continue
        best = min(ratios, key=ratios.__getitem__)
        now = f"{times.get(USUAL_MICROSECONDS, float('nan')):.1f}"
        wins = ratios[best] < 1
        shown = (best, f"{ratios[best]:.3f}") if wins else ("as it is", "1")
        lines.append(f"| {shape} | {now} | {' | '.join(shown)} |")
    changes = [label({n: v}) for n, (_, values) in CONSTANTS.items() for v in values]
    lines += ["", f"| setting | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for change in changes:
        cells = [f"{times[change]:.3f}" if change in times else "–" for times in found.values()]
        lines.append(f"| {change} | {' | '.join(cells)} |")
    return "\n".join(lines)
