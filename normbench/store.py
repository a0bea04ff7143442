"""Records on disk: append-only, safe against crashes and concurrent writers, read as one frame.

`folder/spool/*.json` holds one file per finished cell (spool.py). Compaction copies the spool into
one immutable Parquet file in `folder/parts/`, named by its content, and then deletes the spool
files it copied. A crash in between, or two processes compacting at once, leave records twice,
never not at all: readers drop duplicates by record id. Why it is so: docs/decisions/001.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from normbench import spool
from normbench.cells import SCHEMA_VERSION, Record, Status
from normbench.spool import FAILED, UPGRADERS, StoreError

__all__ = ["SCHEMA", "UPGRADERS", "Store", "StoreError", "latest", "once", "wide"]

CELL_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "suite": pl.String, "task": pl.String, "method": pl.String, "variant": pl.String,
    "model": pl.String, "dataset": pl.String, "batch_size": pl.Int64, "seed": pl.Int64,
    "precision": pl.String,
}  # fmt: skip
"""Fields of the cell that have a column of their own, beside the column `cell`."""

JSON_COLUMNS = ("cell", "curve", "trials", "slots", "environment", "notes")
"""Fields of the record that are JSON text in the frame, as their shape is not fixed."""

_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    **CELL_COLUMNS,
    "params": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "metrics": pl.List(pl.Struct({"name": pl.String, "value": pl.Float64})),
    "cell_id": pl.String,
    "record_id": pl.String,
    "hardware_class": pl.String,
    "code_hash": pl.String,
    "data_fingerprint": pl.String,
    "fallback": pl.String,
    "protocol": pl.Int64,
    "submitter": pl.String,
    "started_at": pl.String,
    "wall_seconds": pl.Float64,
    "schema_version": pl.Int64,
    "samples": pl.List(pl.Float64),
    **dict.fromkeys(JSON_COLUMNS, pl.String),
}

SCHEMA = pl.Schema(_COLUMNS)
"""Columns of the frame, one row per record."""

_VERSION_2 = pl.Schema({name: kind for name, kind in _COLUMNS.items() if name != "fallback"})

_WRONG_TYPE = (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError)


class Store:
    """The records of one results folder.

    Reading never changes anything. Damaged files are named in `problems` and otherwise ignored.

    Args:
        folder: made when the first record is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.spool_folder = self.folder / "spool"
        self.parts_folder = self.folder / "parts"
        self._problems: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What the last reading could not use, one sentence for each file."""
        return list(self._problems)

    def append(self, record: Record) -> Path:
        """Store one record durably.

        Raises:
            StoreError: if the disk is full or the folder cannot be written.
        """
        return spool.write(self.spool_folder, record)

    def check_writable(self) -> None:
        """Make sure that records can be kept here.

        Raises:
            StoreError: with the reason why not.
        """
        spool.check_writable(self.spool_folder)

    def read(self) -> pl.DataFrame:
        """All records as one frame of `SCHEMA`, oldest first, each record id once.

        Of several records with one id (a cell that was run again) the latest that did not fail
        counts, else the latest.

        Raises:
            StoreError: if a file was written by a newer normbench.
        """
        self._problems = []
        # The spool first: what is compacted meanwhile is then seen twice, not missed.
        frames = [self._spool_frame(spool.list_files(self.spool_folder))[0]]
        for path in sorted(self.parts_folder.glob("*.parquet")):
            part = self._part_frame(path)
            if part is not None:
                frames.append(part)
        return once(pl.concat(frames), "record_id").sort("started_at", maintain_order=True)

    def records(self, frame: pl.DataFrame | None = None) -> list[Record]:
        """All records, or those of a frame that `read` gave, as dataclasses."""
        rows = self.read() if frame is None else frame
        return [_record(row, str(self.folder)) for row in rows.iter_rows(named=True)]

    def finished(self, hardware_class: str) -> dict[str, Status]:
        """Status of every cell that has a record from this hardware class, by cell id.

        Where a cell has several, the latest that did not fail counts, else the latest.
        """
        frame = latest(self.read().filter(pl.col("hardware_class") == hardware_class))
        return dict(zip(frame["cell_id"], frame["status"], strict=True))

    def compact(self) -> Path | None:
        """Copy the spool into one Parquet part, then delete what was copied.

        Returns:
            The new part; None if the spool has no good record.

        Raises:
            StoreError: if the part cannot be written; the spool is then left as it was.
        """
        self._problems = []
        frame, copied = self._spool_frame(spool.list_files(self.spool_folder))
        if not copied:
            return None
        buffer = io.BytesIO()
        frame.sort("record_id", "started_at").write_parquet(buffer, compression="zstd")
        content = buffer.getvalue()
        part = spool.write_bytes(self.parts_folder, f"{_digest(content)}.parquet", content)
        spool.delete(copied)
        return part

    def paths(self) -> list[Path]:
        """Every file that holds records."""
        return [*sorted(self.parts_folder.glob("*.parquet")), *spool.list_files(self.spool_folder)]

    def _spool_frame(self, paths: Iterable[Path]) -> tuple[pl.DataFrame, list[Path]]:
        """The good records of these files, and the files that hold them."""
        read = ((path, spool.read_file(path, self._problems)) for path in paths)
        good = {path: record for path, record in read if record is not None}
        try:
            return _frame(good.values()), list(good)
        except _WRONG_TYPE:  # somewhere: look at each to name the file
            for path, record in list(good.items()):
                try:
                    _frame([record])
                except _WRONG_TYPE as error:
                    self._problems.append(f"{path} is not a record: {error}")
                    del good[path]
        return _frame(good.values()), list(good)

    def _part_frame(self, path: Path) -> pl.DataFrame | None:
        try:
            content = path.read_bytes()
        except OSError as error:
            self._problems.append(f"{path} cannot be read: {error.strerror}")
            return None
        if path.stem != _digest(content):
            self._problems.append(
                f"{path} is damaged: its content does not have the digest in its name"
            )
            return None
        try:
            return _parse_part(content, str(path))
        except (KeyError, *_WRONG_TYPE) as error:
            if isinstance(error, StoreError):
                raise
            self._problems.append(f"{path} is not a part of a results folder: {error}")
            return None


def latest(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per cell id: the latest that did not fail, else the latest."""
    return once(frame, "cell_id")


def once(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """One row per value of a column of ids: the latest that did not fail, else the latest."""
    ordered = frame.sort(~pl.col("status").is_in(list(FAILED)), "started_at", maintain_order=True)
    return ordered.unique(subset=column, keep="last", maintain_order=True)


def wide(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a column for every metric in place of the column `metrics`.

    A metric that has the name of a column, `wall_seconds` for instance, gets `metric_` before it.
    """
    rest = frame.drop("metrics").with_row_index("_row")
    long = (
        frame.select("metrics").with_row_index("_row").explode("metrics").drop_nulls("metrics")
        .unnest("metrics")
    )  # fmt: skip
    if long.is_empty():
        return rest.drop("_row")
    pivoted = long.pivot("name", index="_row", values="value")
    taken = {name: f"metric_{name}" for name in frame.columns if name in pivoted.columns}
    return rest.join(pivoted.rename(taken), on="_row", how="left", maintain_order="left").drop(
        "_row"
    )


def _parse_part(content: bytes, where: str) -> pl.DataFrame:
    frame = _from_version_2(pl.read_parquet(io.BytesIO(content)))
    if frame.schema == SCHEMA and (frame["schema_version"] == SCHEMA_VERSION).all():
        return frame
    return _frame([_record(row, where) for row in frame.iter_rows(named=True)])


def _from_version_2(frame: pl.DataFrame) -> pl.DataFrame:
    """What `UPGRADERS` does to a row of version 2, for all rows of a part at once."""
    if frame.schema != _VERSION_2 or (frame["schema_version"] != 2).any():
        return frame
    added = {"fallback": pl.lit(""), "schema_version": pl.lit(3, pl.Int64)}
    return frame.with_columns(**added).select(SCHEMA.names())


def _row(record: Record) -> dict[str, Any]:
    """A record as a row of the frame."""
    plain = record.to_json()
    cell = plain["cell"]
    return {
        **{name: plain[name] for name in SCHEMA if name in plain},
        **{name: cell[name] for name in CELL_COLUMNS},
        **{name: _text(plain[name]) for name in JSON_COLUMNS},
        "params": _text(cell["params"]),
        "metrics": [{"name": name, "value": value} for name, value in plain["metrics"].items()],
    }


def _record(row: Mapping[str, Any], where: str) -> Record:
    """Inverse of `_row`, for rows of any schema version: columns that repeat the cell's go."""
    plain = {name: row[name] for name in row.keys() - CELL_COLUMNS.keys() - {"params"}}
    for name in JSON_COLUMNS:
        if name in plain:
            plain[name] = json.loads(plain[name])
    plain["metrics"] = {item["name"]: item["value"] for item in row["metrics"]}
    return spool.record_from_row(plain, where)


def _frame(records: Iterable[Record]) -> pl.DataFrame:
    return pl.DataFrame([_row(record) for record in records], schema=SCHEMA, strict=True)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
