"""Where a site's content comes from: folders of records and the suites' own words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import yaml

from normbench.cells import Record
from normbench.store import Store, once, wide

ACCEPTED = Path(__file__).parent / "results"
"""Records that ship with the package."""


def default_results() -> list[Path]:
    """The user's folder of records if it has any, otherwise the package's accepted ones."""
    folder = Path(os.environ.get("NORMBENCH_RESULTS") or "results")
    return [folder] if folder.is_dir() and _store(folder).paths() else [ACCEPTED]


def read(folders: Sequence[Path]) -> tuple[pl.DataFrame, list[str]]:
    """All records of the folders as one frame, and the files that could not be read."""
    stores = [_store(folder) for folder in folders]
    frame = pl.concat([store.read() for store in stores])
    unique = once(frame, "record_id").sort("started_at", "record_id")
    return unique, [problem for store in stores for problem in store.problems]


def accepted() -> list[Record]:
    """The records that ship with the package."""
    return _store(ACCEPTED).records()


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as CSV can hold it: a column for every metric, no raw timing samples."""
    return wide(frame.drop("samples"))


def _store(folder: Path) -> Store:
    store = Store(folder)
    # Accepted records lie flat. A folder that was run into has its own, and a stray file (an
    # export, say) must not hide them.
    in_use = store.parts_folder.is_dir() or store.spool_folder.is_dir()
    if not in_use and any(folder.glob("*.parquet")):
        store.parts_folder = folder
    return store


def questions(folder: Path | None) -> dict[str, str]:
    """The question of each suite file in a folder, by the suite's name.

    Files that are not suites are passed over: checking them is the business of `suite check`.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.y*ml")) if folder is not None and folder.is_dir() else ():
        try:
            suite = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(suite, dict) and isinstance(suite.get("question"), str):
            found[str(suite.get("name", path.stem))] = " ".join(suite["question"].split())
    return found
