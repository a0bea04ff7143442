"""The static site: from folders of records to pages that open from file:// with no network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from normbench.leaderboard import boards as boards_
from normbench.leaderboard import catalogue as catalogue_
from normbench.leaderboard import pages, sources
from normbench.leaderboard.publish import SiteError, replacing

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Built:
    """What a build left, and what it came across."""

    index: Path
    records: int
    boards: int
    problems: tuple[str, ...]


def build(
    results: Sequence[Path],
    out: Path,
    *,
    catalogue: Path | None = None,
    suites: Path | None = None,
) -> Built:
    """Build the whole site and put it at `out` in one move.

    Args:
        results: folders of records; of repeats in several, the latest counts.
        out: the site's folder; an older site there is replaced.
        catalogue: file of `normbench methods --json`; the one shipped with the package by default.
        suites: folder of suite files, to quote the question each asks; without it none is quoted.

    Raises:
        SiteError: if there are no records, or `out` holds something else.
        CatalogueError: if the catalogue cannot be read.
    """
    frame, problems = sources.read(results)
    if frame.is_empty():
        names = ", ".join(map(str, results)) or "the package"
        raise SiteError(f"no records in {names}; measure some with `normbench run SUITE` first")
    methods = catalogue_.load(catalogue)
    made = boards_.boards(frame, methods)
    content = pages.Content(
        boards=tuple(made),
        rows=tuple(boards_.read_rows(frame)),
        catalogue=methods,
        questions=sources.questions(suites),
        problems=tuple(problems),
    )
    with replacing(out) as folder:
        _write(folder, pages.render(content))
        shutil.copytree(STATIC, folder / "static")
        _write_data(folder / "data", frame)
    return Built(out.absolute() / "index.html", frame.height, len(made), tuple(problems))


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _write_data(folder: Path, frame: pl.DataFrame) -> None:
    folder.mkdir()
    frame.write_parquet(folder / "records.parquet")
    sources.wide(frame).write_csv(folder / "records.csv")
