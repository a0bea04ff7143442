"""Run one cell here and now, and turn whatever happens into a record."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import re
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from normbench import registry, tasks
from normbench.cells import Cell, Record, Status, cell_id, record_id
from normbench.engine import environment
from normbench.engine.numerics import reproducible
from normbench.tasks.outcome import Outcome, out_of_memory
from normbench.tasks.training import AUTOCAST

Notify = Callable[[float], None]

REFUSAL = "values per channel"
"""A method's own words (registry.py) for: these statistics do not exist."""

_MAX_NOTES = 10


class CellTimeout(BaseException):
    """The cell's time is up.

    Not an `Exception`, so that a task that tolerates failing trials does not swallow it.
    """


def identify(cell: Cell) -> tuple[str, str, int]:
    """The cell's id, the hash of its method's code and its task's protocol version.

    Raises:
        ValueError: if there is no such method or task.
    """
    code_hash = registry.get(cell.method).code_hash()
    protocol = tasks.get(cell.task).PROTOCOL
    return cell_id(cell, code_hash, protocol), code_hash, protocol


def fallback(cell: Cell, device: torch.device) -> str:
    """Why the cell's method would run its eager path on this device; empty if it would not."""
    try:
        info = registry.get(cell.method)
    except registry.RegistryError:  # nothing of it can run
        return ""
    return info.why_eager(device, AUTOCAST.get(cell.precision, torch.float32))


def execute(
    cell: Cell,
    *,
    device: torch.device,
    threads: int = 1,
    submitter: str | None = None,
    progress: Notify | None = None,
    spoilt: Callable[[], object] | None = None,
) -> Record:
    """Run a cell and return its record, whatever happens.

    Only KeyboardInterrupt and SystemExit pass through. The cell's `timeout_seconds` is enforced
    whenever its task reports progress; a cell that hangs needs a supervised worker (pool.py).

    Args:
        cell: what to measure.
        device: where.
        threads: CPU threads torch may use while the cell runs.
        submitter: who measures; None asks `environment.submitter`.
        progress: takes the fraction done, 0 to 1.
        spoilt: called where the cell left the process unfit for another, whatever its status.
    """
    started_at, began = now(), time.perf_counter()
    deadline = began + timeout_seconds(cell)

    def watched(fraction: float) -> None:
        if time.perf_counter() > deadline:
            raise CellTimeout
        if progress is not None:
            progress(min(max(fraction, 0.0), 1.0))

    outcome = _attempt(cell, device, threads_of(cell, threads), watched)
    if outcome.spoilt and spoilt is not None:
        spoilt()
    return make_record(
        cell, outcome, device=device, threads=threads, submitter=submitter,
        started_at=started_at, wall_seconds=time.perf_counter() - began,
    )  # fmt: skip


def make_record(
    cell: Cell,
    outcome: Outcome,
    *,
    device: torch.device,
    threads: int,
    submitter: str | None,
    started_at: str,
    wall_seconds: float,
) -> Record:
    """The record of an outcome measured, or suffered, on this machine."""
    try:
        work, code_hash, protocol = identify(cell)
    except ValueError:  # a cell without a method or task fails; it still needs a name
        code_hash, protocol = "", 0
        work = cell_id(cell, code_hash, protocol)
    where = surroundings(cell, device, threads)
    hardware = environment.hardware_class(device)
    who = environment.submitter() if submitter is None else submitter
    return Record(
        record_id=record_id(work, hardware, where, who), cell_id=work, cell=cell,
        code_hash=code_hash, protocol=protocol, status=outcome.status, reason=outcome.reason,
        metrics=outcome.metrics, curve=outcome.curve, trials=outcome.trials,
        samples=outcome.samples, slots=outcome.slots, environment=where, hardware_class=hardware,
        submitter=who, started_at=started_at, wall_seconds=wall_seconds, notes=outcome.notes,
        data_fingerprint=outcome.data_fingerprint, fallback=fallback(cell, device),
    )  # fmt: skip


def surroundings(cell: Cell, device: torch.device, threads: int) -> dict[str, Any]:
    """The environment of the cell's record: this machine's, as the cell's task uses it."""
    where = environment.describe(device, threads_of(cell, threads))
    if cell.task in tasks.AS_USERS_RUN:
        where["numerics"] |= {"tf32": cell.precision == "tf32", "deterministic": False}
    return where


def threads_of(cell: Cell, threads: int) -> int:
    """CPU threads of a cell: its own number where it measures with so many, else the worker's.

    What is no number is the task's to refuse.
    """
    own = cell.config.get("threads")
    return own if type(own) is int and own > 0 else threads


def timeout_seconds(cell: Cell) -> float:
    """The cell's own limit; infinite where its configuration sets none."""
    limit = cell.config.get("timeout_seconds")
    return float("inf") if limit is None else float(limit)


def timed_out(cell: Cell) -> Outcome:
    """What is left of a cell that ran longer than it may."""
    return Outcome("timeout", f"took longer than its limit of {timeout_seconds(cell):g} s")


def short_paths(text: str) -> str:
    """A traceback with three last parts of each path: records are published, home folders not."""
    return re.sub(r'File "[^"]*?((?:[^/\\"]+[/\\]){0,2}[^/\\"]+)"', r'File "\1"', text)


def now() -> str:
    """This moment as records have it: ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _attempt(cell: Cell, device: torch.device, threads: int, progress: Notify) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            identify(cell)  # what has no method or task of ours must not look measured
            with reproducible(cell.seed, device, threads):
                outcome = _plain(tasks.get(cell.task).run(cell, device, progress))
        except CellTimeout:
            outcome = timed_out(cell)
        except Exception as error:
            outcome = _failure(error, cell, device)
    notes = dict.fromkeys((*outcome.notes, *(_warned(w) for w in caught)))
    return dataclasses.replace(outcome, notes=tuple(notes)[:_MAX_NOTES])


def _failure(error: Exception, cell: Cell, device: torch.device) -> Outcome:
    """Status and reason of an exception that ended a cell."""
    status = _status(error)
    details: tuple[str, ...] = ()
    if status == "error" and not _ours(error):
        reason = f"{type(error).__name__}: {_one_line(error)} ({_last_frame(error)})"
        details = (short_paths("".join(traceback.format_exception(error))),)
    else:
        reason = _one_line(error)
    # The frames hold the tensors that did not fit; the next cell needs their memory.
    traceback.clear_frames(error.__traceback__)
    if status == "oom":
        size = cell.config.get("image_size")
        at = f" at {size} px" if size else ""
        reason = f"batch {cell.batch_size}{at} does not fit into memory: {reason}"
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return Outcome(status, reason, notes=details)


def _status(error: Exception) -> Status:
    if out_of_memory(error):
        return "oom"
    words = str(error).lower()
    if isinstance(error, registry.UnsupportedError):
        return "unsupported"
    if isinstance(error, ValueError) and REFUSAL in words:
        return "unsupported"
    return "error"


def _ours(error: Exception) -> bool:
    """Whether this is one of our sentences for users, which need no traceback."""
    return isinstance(error, ValueError) and type(error).__module__.startswith("normbench.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _last_frame(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "no frame"
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"


def _plain(outcome: Outcome) -> Outcome:
    """The outcome as JSON would give it back: what cannot be stored must fail here, in its cell.

    Raises:
        TypeError: if a value is not plain.
    """
    plain: dict[str, Any] = {
        name: json.loads(json.dumps(getattr(outcome, name)))
        for name in ("curve", "trials", "samples", "slots", "notes")
    }
    metrics = {name: float(value) for name, value in outcome.metrics.items()}
    lists = {name: tuple(plain[name]) for name in ("curve", "trials", "samples", "notes")}
    return Outcome(
        outcome.status, outcome.reason, metrics, slots=plain["slots"],
        data_fingerprint=str(outcome.data_fingerprint), spoilt=outcome.spoilt, **lists,
    )  # fmt: skip


def _warned(warning: warnings.WarningMessage) -> str:
    return f"{warning.category.__name__}: {' '.join(str(warning.message).split())}"
