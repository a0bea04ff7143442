"""Records of task `layer` that were measured under pytest-benchmark.

pytest-benchmark times one function. Ours are timed against batch norm, whose times, with all else
that a record needs, go into the benchmark's `extra_info` (`described`); `read` makes records of
the file that `--benchmark-json` writes. That file says which pytest-benchmark wrote it, and has no
version of its form: what is needed of it (`stats.data`, the raw times) has stood where it is since
version 3.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from normbench import registry
from normbench.cells import Cell, CellError, Record, cell_id, record_id
from normbench.engine import environment
from normbench.engine.execute import fallback, identify, surroundings
from normbench.store import Store
from normbench.tasks import layer
from normbench.timing.contestants import OURS
from normbench.timing.layers import COMMUNICATION, REFERENCE
from normbench.timing.options import OptionError

KEY = "normbench"
"""Where in `extra_info` we stand."""

TIMER = "perf_counter"
"""What the other contestants are timed with, and pytest-benchmark's own choice on most systems."""

HOST_CLOCK = "times are the host's, each round waiting for the device"

_KINDS: dict[str, type] = {
    "cell": dict, "code_hash": str, "protocol": int, "samples": dict, "environment": dict,
    "hardware_class": str, "submitter": str, "started_at": str, "wall_seconds": float,
    "fallback": str,
}  # fmt: skip

_CELL_KINDS: dict[str, type] = {
    **dict.fromkeys(("params", "model_args", "dataset_args", "config"), dict),
    **dict.fromkeys(("batch_size", "seed"), int),
}
"""The other fields of a cell are text."""


class BenchmarkFileError(ValueError):
    """A file that no records can be made of, with its name and the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Benchmarks:
    """What a file has.

    Attributes:
        records: one for each benchmark of ours.
        foreign: names of benchmarks that are not ours.
        notes: what whoever imports them should know, one sentence each.
    """

    records: tuple[Record, ...]
    foreign: tuple[str, ...]
    notes: tuple[str, ...]


def described(
    cell: Cell,
    device: torch.device,
    others: Mapping[str, Sequence[float]],
    *,
    started_at: str,
    wall_seconds: float,
) -> dict[str, Any]:
    """What a benchmark of ours puts under `KEY` into its `extra_info`.

    Args:
        cell: of task `layer`.
        device: where it was timed.
        others: seconds of the contestants that pytest-benchmark does not time, round by round.
        started_at: as `engine.execute.now` gives it.
        wall_seconds: of the whole benchmark.
    """
    if device.type == "cuda":  # another clock than the task's own, and so other work
        cell = dataclasses.replace(cell, config={**cell.config, "clock": "host"})
    _, code_hash, protocol = identify(cell)
    return {
        "cell": cell.to_json(),
        "code_hash": code_hash,
        "protocol": protocol,
        "samples": {name: list(seconds) for name, seconds in others.items()},
        "environment": surroundings(cell, device, 1),
        "hardware_class": environment.hardware_class(device),
        "submitter": environment.submitter(),
        "started_at": started_at,
        "wall_seconds": wall_seconds,
        "fallback": fallback(cell, device),
    }


def read(path: str | os.PathLike[str]) -> Benchmarks:
    """The records of a file of pytest-benchmark's.

    Raises:
        BenchmarkFileError: if it is not such a file, has no benchmark of ours, or one that lacks
            something or cannot be.
        OSError: if it cannot be read.
    """
    benchmarks = _benchmarks(Path(path))
    ours = [entry for entry in benchmarks if KEY in entry.get("extra_info", {})]
    if not ours:
        raise BenchmarkFileError(f"{path} has no benchmark with a record of ours")
    records = []
    for entry in ours:
        try:
            records.append(_record(entry))
        except (BenchmarkFileError, CellError, registry.RegistryError, OptionError) as error:
            raise BenchmarkFileError(f"{path}: {_name(entry)}: {error}") from error
    foreign = tuple(_name(entry) for entry in benchmarks if entry not in ours)
    return Benchmarks(tuple(records), foreign, tuple(_older(records)))


def add(store: Store, records: Sequence[Record]) -> int:
    """Append those whose ids the store does not have; how many.

    Raises:
        StoreError: if the folder cannot be used.
    """
    there = set(store.read()["record_id"])
    added = 0
    for record in records:
        if record.record_id not in there:
            store.append(record)
            there.add(record.record_id)
            added += 1
    return added


def _benchmarks(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # UnicodeDecodeError is one
        raise BenchmarkFileError(f"{path} is not JSON: {error}") from error
    found = content.get("benchmarks") if isinstance(content, dict) else None
    whole = isinstance(found, list) and isinstance(content.get("version"), str)
    if not whole or not all(isinstance(entry, dict) for entry in found or ()):
        raise BenchmarkFileError(
            f"{path} was not written by pytest-benchmark: it has no version and list of benchmarks"
        )
    return list(found or ())


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("fullname", "a benchmark without a name"))


def _record(entry: Mapping[str, Any]) -> Record:
    told = _checked(entry["extra_info"][KEY], _KINDS, "extra_info.normbench")
    fields = {name: _CELL_KINDS.get(name, str) for name in Cell.__dataclass_fields__}
    cell = Cell.from_json(_checked(told["cell"], fields, "its cell"))
    if cell.task != "layer":
        raise BenchmarkFileError(f"its cell is of task {cell.task!r}; only layer can be imported")
    layer.check(cell)
    registry.get(cell.method)
    if told["protocol"] != layer.PROTOCOL:
        raise BenchmarkFileError(
            f"it has protocol {told['protocol']} of task layer; this normbench has {layer.PROTOCOL}"
        )
    try:
        datetime.datetime.fromisoformat(told["started_at"])
    except ValueError:
        raise BenchmarkFileError(f"started_at is {told['started_at']!r}, no time") from None
    outcome = layer.outcome(layer.entries_of(_samples(entry, cell, told["samples"])))
    work = cell_id(cell, told["code_hash"], told["protocol"])
    where, hardware, who = told["environment"], told["hardware_class"], told["submitter"]
    waited = (HOST_CLOCK,) if hardware.startswith("cuda") else ()
    return Record(
        record_id=record_id(work, hardware, where, who), cell_id=work, cell=cell,
        code_hash=told["code_hash"], protocol=told["protocol"], status=outcome.status,
        reason=outcome.reason, metrics=outcome.metrics, curve=outcome.curve,
        trials=outcome.trials, samples=outcome.samples, slots=outcome.slots, environment=where,
        hardware_class=hardware, submitter=who, started_at=told["started_at"],
        wall_seconds=told["wall_seconds"], notes=(*outcome.notes, *waited),
        fallback=told["fallback"],
    )  # fmt: skip


def _checked(told: Any, kinds: Mapping[str, type], what: str) -> dict[str, Any]:
    """What was told, if it has every key with a value of its kind."""
    given = told if isinstance(told, dict) else {}
    if missing := [name for name in kinds if name not in given]:
        raise BenchmarkFileError(f"{what} lacks {', '.join(missing)}")
    for name, kind in kinds.items():
        value = given[name]
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or isinstance(value, bool):
            raise BenchmarkFileError(f"{what} has {value!r:.60} as {name}, not {kind.__name__}")
    return given


def _samples(
    entry: Mapping[str, Any], cell: Cell, others: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Seconds by contestant, as many of each."""
    stats, options = entry.get("stats"), entry.get("options")
    if not isinstance(stats, dict) or "data" not in stats:
        raise BenchmarkFileError(
            "it was saved without raw times: use --benchmark-json, or --benchmark-save-data "
            "beside --benchmark-save"
        )
    timer = options.get("timer") if isinstance(options, dict) else None
    if timer != TIMER:
        raise BenchmarkFileError(f"it was timed by {timer}, the others by {TIMER}")
    wanted = [REFERENCE, *([COMMUNICATION] if cell.config["processes"] > 1 else [])]
    if missing := [name for name in wanted if name not in others]:
        raise BenchmarkFileError(f"its samples lack {', '.join(missing)}")
    found = {OURS: stats["data"], **{name: others[name] for name in wanted}}
    for name, seconds in found.items():
        if not isinstance(seconds, list) or not all(map(_is_time, seconds)):
            raise BenchmarkFileError(f"the samples of {name} are not all times above 0")
    counts = {name: len(seconds) for name, seconds in found.items()}
    if len(set(counts.values())) > 1 or not counts[OURS]:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise BenchmarkFileError(f"its samples are no rounds: {told}")
    return found


def _is_time(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Records keep times to the nanosecond.
    return number and math.isfinite(value) and round(value, 9) > 0


def _older(records: Sequence[Record]) -> list[str]:
    """One sentence for each method whose code is not what was measured."""
    other = Counter(
        r.cell.method for r in records if r.code_hash != registry.get(r.cell.method).code_hash()
    )
    return [
        f"{count} of {method} {'was' if count == 1 else 'were'} measured with other code of the "
        "method; boards show such records as older code"
        for method, count in other.items()
    ]
