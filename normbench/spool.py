"""The spool: one small file per finished cell, written so that a crash can tear none of them.

A record is written to a hidden file, flushed to the disk and renamed; the folder is flushed after
it. What has a `.json` name is therefore whole, or was damaged later, which its name tells: it ends
in a digest of the content. Nothing here changes or deletes a record.

Standard library only, for this is what runs on machines that have little more than torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from normbench.cells import SCHEMA_VERSION, CellError, Record, Status

Row = dict[str, Any]


def _fingerprint_from_notes(row: Row) -> Row:
    """Version 1 had the fingerprint of the data only in a note."""
    for note in row["notes"]:
        if found := re.fullmatch(r"data: .*, fingerprint (\w+)", note):
            return row | {"data_fingerprint": found[1]}
    return row | {"data_fingerprint": ""}


def _no_fallback(row: Row) -> Row:
    """Up to version 2 no method had kernels to fall back from."""
    return row | {"fallback": ""}


UPGRADERS: dict[int, Callable[[Row], Row]] = {1: _fingerprint_from_notes, 2: _no_fallback}
"""Schema version to the function that turns a row of that version into one of the next.

A row is a record as `Record.to_json` wrote it at the time. Files are never edited: rows are
upgraded each time they are read.
"""


FAILED: frozenset[Status] = frozenset({"error", "timeout"})
"""Statuses that say nothing about the method, so that running the cell again may make sense."""


class StoreError(ValueError):
    """A results folder that cannot be used, with the reason."""


def write(folder: str | os.PathLike[str], record: Record) -> Path:
    """Store one record durably and return its file. Writing it twice leaves one file.

    Raises:
        StoreError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    row = record.to_json()
    content = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    return write_bytes(folder, f"{record.record_id}-{_digest(content)}.json", content)


def write_bytes(folder: str | os.PathLike[str], name: str, content: bytes) -> Path:
    """Create `folder/name` with this content in one step: whole, or not at all.

    Raises:
        StoreError: as `write`.
    """
    folder = Path(folder)
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / name)
        except BaseException:  # Ctrl-C too: half a file must not stay
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(folder)
    except OSError as error:
        raise StoreError(_explain(folder, error)) from error
    return folder / name


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make sure that records can be kept here, before hours are spent on making them.

    Raises:
        StoreError: with the reason why not.
    """
    probe = write_bytes(folder, f".probe-{os.getpid()}", b"\0" * 65536)
    probe.unlink(missing_ok=True)


def read(folder: str | os.PathLike[str]) -> tuple[list[Record], list[str]]:
    """All good records of a spool, and one sentence for every file that is not one.

    Raises:
        StoreError: if a record was written by a newer normbench.
    """
    records: list[Record] = []
    problems: list[str] = []
    for path in list_files(folder):
        record = read_file(path, problems)
        if record is not None:
            records.append(record)
    return records, problems


def list_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The spool's record files, sorted; none if there is no spool yet."""
    return sorted(Path(folder).glob("[!.]*.json"))


def read_file(path: Path, problems: list[str]) -> Record | None:
    """The record in one spool file. If it is damaged, None, and a sentence added to `problems`.

    A file that vanishes while it is read was compacted by another process: no problem.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}")
        return None
    if path.stem.rpartition("-")[2] != _digest(content):
        problems.append(f"{path} is damaged: its content does not have the digest in its name")
        return None
    try:
        return record_from_row(json.loads(content), str(path))
    except (CellError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, StoreError):
            raise
        problems.append(f"{path} is not a record: {error}")
        return None


def record_from_row(row: Mapping[str, Any], where: str) -> Record:
    """A record from a row of any schema version up to this one.

    Args:
        row: what `Record.to_json` gave when it was written.
        where: the file, for messages.

    Raises:
        StoreError: if the row is of a newer version than this normbench knows.
        CellError: if it is not a record.
    """
    upgraded = dict(row)
    version = upgraded.get("schema_version")
    if not isinstance(version, int):
        raise CellError("record has no schema version")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{where} was written by a newer normbench (schema version {version}, this one reads "
            f"up to {SCHEMA_VERSION}): update normbench to use this folder"
        )
    for old in range(version, SCHEMA_VERSION):
        if old not in UPGRADERS:
            raise CellError(f"there is no way to upgrade schema version {old}")
        try:
            upgraded = {**UPGRADERS[old](upgraded), "schema_version": old + 1}
        except (KeyError, TypeError) as error:
            raise CellError(f"record of schema version {old} lacks {error}") from error
    return Record.from_json(upgraded)


def delete(paths: Iterable[Path]) -> None:
    """Remove spool files whose records are stored elsewhere; what is gone already is fine."""
    for path in paths:
        path.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Some systems cannot open folders; they need not."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(folder: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "; free some space and run the same command again" if full else ""
    return f"cannot write records to {folder}: {error.strerror or error}{hint}"
