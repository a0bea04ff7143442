"""Cells and records: the unit of work, and the row that doing it leaves.

Standard library only: this file is the floor everything else stands on, and it travels to
machines that have little more than torch.

A *cell* is plain configuration. Its id adds what the configuration does not say: the code of
the method and the version of the task's protocol, so that the same id always means the same
work. A *record* is what a run of a cell leaves, whatever became of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

SCHEMA_VERSION = 3
"""Version of the record's shape. Older rows are upgraded on read, never edited (store.py)."""

Status = Literal["ok", "diverged", "oom", "timeout", "unsupported", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)

MEASURED: frozenset[Status] = frozenset({"ok", "diverged", "oom"})
"""Statuses that are a measurement of the method rather than a refusal or a fault of ours."""

MAIN_METRICS = {
    "accuracy": "test_accuracy",
    "layer": "ratio",
    "memory": "saved_ratio",
    "throughput": "ratio",
}
"""The figure of a task's records that tables and boards show where none is asked for.

The ratios are the method's to batch norm's: above 1 is slower, or larger. Where a record has an
interval of its own for its main figure, `{metric}_low` and `{metric}_high` are its bounds. The
other tasks have no one figure.
"""

NOT_WORK = {
    "config": ("timeout_seconds", "eval_batch_size"),
    "dataset_args": ("workers",),
}
"""Options that change how long a cell may take or where it waits, never what it measures."""


class CellError(ValueError):
    """A cell or record that cannot be read, with the reason."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a suite's grid. All fields are plain JSON values.

    Attributes:
        suite: name of the suite it was expanded from. Not part of the id: the same work asked
            for by two suites is done once.
        task: what is measured, `accuracy` for instance.
        method: catalogue name.
        params: the method's parameters, resolved: defaults filled in.
        variant: canonical string of method and parameters, what tables show.
        model: timm model name.
        model_args: keyword arguments for `timm.create_model`.
        dataset: source string, `embedded:mnist` for instance.
        dataset_args: options of the source (`train_samples`, `image_size`, column names ...).
        batch_size: samples in one forward pass.
        seed: the run's seed; equal seeds are paired across methods.
        precision: `fp32`, `bf16` or `fp16`.
        config: the task's own options (optimizer, samples, tuning grid ...), resolved.
    """

    suite: str
    task: str
    method: str
    params: Mapping[str, Any]
    variant: str
    model: str
    model_args: Mapping[str, Any]
    dataset: str
    dataset_args: Mapping[str, Any]
    batch_size: int
    seed: int
    precision: str
    config: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The cell as a plain dictionary, ready for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Inverse of `to_json`.

        Raises:
            CellError: if a key is missing or unknown.
        """
        return cls(**_exact_keys(cls, data))


@dataclass(frozen=True, slots=True)
class Record:
    """What one run of one cell left. Immutable; a failure is a record too.

    Attributes:
        record_id: hash of cell id, hardware class, environment and submitter.
        cell_id: `cell_id(cell, code_hash, protocol)`.
        cell: the resolved configuration.
        code_hash: hash of the method's code (normbench.codehash).
        protocol: version of the task's protocol.
        status: one of `STATUSES`.
        reason: empty when `ok`, else one sentence.
        metrics: name to number; units are in the name where there is one (`_seconds`, `_bytes`).
        curve: one dictionary per epoch (or per evaluation) of numbers.
        trials: tuning trials, each `{"config": {...}, "status": ..., "metrics": {...}}`.
        samples: raw timing samples in seconds, where the task times.
        slots: surgery's counts, the report in short.
        environment: git sha, package versions, device, threads ...
        hardware_class: records are compared only within one class.
        submitter: who measured it.
        started_at: ISO 8601, UTC.
        wall_seconds: of the whole cell, set-up included.
        notes: what a reader should know (a fallback, a warning), one sentence each.
        data_fingerprint: hash of the samples in use (`normbench.data.Dataset.fingerprint`); empty
            where the cell ended before it had read them, or reads none.
        fallback: why the method's layers ran its eager path in place of their own kernels; empty
            if the kernels ran or there are none. With a reason the record enters no board.
    """

    record_id: str
    cell_id: str
    cell: Cell
    code_hash: str
    protocol: int
    status: Status
    reason: str
    metrics: Mapping[str, float]
    curve: tuple[Mapping[str, float], ...]
    trials: tuple[Mapping[str, Any], ...]
    samples: tuple[float, ...]
    slots: Mapping[str, Any]
    environment: Mapping[str, Any]
    hardware_class: str
    submitter: str
    started_at: str
    wall_seconds: float
    notes: tuple[str, ...] = ()
    data_fingerprint: str = ""
    fallback: str = ""
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def measured(self) -> bool:
        """Whether the record is a measurement (see `MEASURED`)."""
        return self.status in MEASURED

    def to_json(self) -> dict[str, Any]:
        """The record as a plain dictionary. NaN and infinities become None, as JSON has none."""
        return cast(dict[str, Any], _finite(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Inverse of `to_json` for rows of the current schema version.

        Raises:
            CellError: if a key is missing or unknown, the status is not a status, or the schema
                version is not this one (the store upgrades older rows before it calls this).
        """
        values = _exact_keys(cls, data)
        if values["schema_version"] != SCHEMA_VERSION:
            raise CellError(
                f"record has schema version {values['schema_version']}, expected {SCHEMA_VERSION}"
            )
        if values["status"] not in STATUSES:
            raise CellError(f"record has status {values['status']!r}, expected one of {STATUSES}")
        values["cell"] = Cell.from_json(values["cell"])
        for name in ("curve", "trials", "samples", "notes"):
            values[name] = tuple(values[name])
        values["metrics"] = {
            name: float("nan") if value is None else float(value)
            for name, value in values["metrics"].items()
        }
        return cls(**values)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings.

    Integral floats are written as integers, so that `1` and `1.0` in a YAML file are the same
    configuration.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    return json.dumps(
        _canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False,
        allow_nan=False,
    )  # fmt: skip


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def cell_id(cell: Cell, code_hash: str, protocol: int) -> str:
    """Id of the work a cell stands for: configuration, method code, protocol version, seed.

    `suite` and `variant` are labels, not work, and do not count; nor do the options `NOT_WORK`.
    """
    work = cell.to_json()
    del work["suite"], work["variant"]
    return digest({"cell": work | settings(cell), "code": code_hash, "protocol": protocol})


def settings(cell: Cell) -> dict[str, Any]:
    """Options of the task and of the data that decide what is measured, without `NOT_WORK`."""
    return {
        name: {k: v for k, v in getattr(cell, name).items() if k not in NOT_WORK.get(name, ())}
        for name in ("config", "dataset_args")
    }


def data_key(cell: Cell) -> str:
    """What cells that ask for the same samples share: the source and its options."""
    return canonical_json([cell.dataset, settings(cell)["dataset_args"]])


def with_data(records: Sequence[Record]) -> list[Record]:
    """The records with every fingerprint that can be told.

    A cell that ended before it had read its data takes that of the latest record which asked for
    the same samples: a failure is shown beside what it would have been compared with.
    """
    dated = sorted(records, key=lambda record: record.started_at)
    known = {data_key(r.cell): r.data_fingerprint for r in dated if r.data_fingerprint}
    return [
        record
        if record.data_fingerprint
        else dataclasses.replace(record, data_fingerprint=known.get(data_key(record.cell), ""))
        for record in records
    ]


def fell_back(found: Iterable[tuple[str, str]], verb: str = "ran") -> list[str]:
    """One sentence for each method that fell back to its eager path, with all its reasons.

    Args:
        found: name of a method and `Record.fallback`, for any number of records.
        verb: `would run` where there is no record yet.
    """
    reasons: dict[str, dict[str, None]] = {}
    for method, reason in found:
        if reason:
            reasons.setdefault(method, {})[reason] = None
    return [
        f"{method} {verb} as its eager method: {'; '.join(given)}; such records never enter a board"
        for method, given in reasons.items()
    ]


def record_id(cell_id: str, hardware_class: str, environment: Mapping[str, Any], who: str) -> str:
    """Id of a measurement: the work, where it was done and by whom."""
    return digest([cell_id, hardware_class, environment, who])


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:  # NaN or infinite
        return None
    return value


def _exact_keys(cls: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    expected = {f.name for f in dataclasses.fields(cls)}
    missing, unknown = sorted(expected - data.keys()), sorted(data.keys() - expected)
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"misses {', '.join(missing)}")
        if unknown:
            parts.append(f"has unknown {', '.join(unknown)}")
        raise CellError(f"{cls.__name__.lower()} {' and '.join(parts)}")
    return dict(data)
