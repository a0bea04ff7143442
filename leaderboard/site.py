"""The static site: from folders of records to pages that open from file:// with no network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from normbench.leaderboard import boards as boards_
from normbench.leaderboard import catalogue as catalogue_
from normbench.leaderboard import charts, pages, sources
from normbench.leaderboard.capabilities import matrices
from normbench.leaderboard.costs import TASKS, cost_boards
from normbench.leaderboard.provenance import off_board
from normbench.leaderboard.publish import NoRecordsError, SiteError, replacing
from normbench.leaderboard.rows import read_rows
from normbench.leaderboard.tradeoff import tradeoffs

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Built:
    """What a build left, and what it came across.

    Attributes:
        boards: of accuracy.
        costs: boards of speed and memory.
        tradeoffs: charts of accuracy against cost.
        eager: records of eager paths, which are on no board.
    """

    index: Path
    records: int
    boards: int
    costs: int
    tradeoffs: int
    eager: int
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
        NoRecordsError: if there are no records.
        SiteError: if `out` holds something else.
        CatalogueError: if the catalogue cannot be read.
    """
    frame, problems = sources.read(results)
    if frame.is_empty():
        names = ", ".join(map(str, results)) or "the package"
        raise NoRecordsError(
            f"no records in {names}; measure some with `normbench run SUITE` first"
        )
    methods = catalogue_.load(catalogue)
    made = boards_.boards(frame, methods)
    costs = cost_boards(frame, methods)
    content = pages.Content(
        boards=tuple(made),
        rows=tuple(read_rows(frame)),
        catalogue=methods,
        questions=sources.questions(suites),
        problems=tuple(problems),
        matrices=matrices(frame, catalogue_.load_probes(catalogue), methods),
        costs=tuple(costs),
        tradeoffs=tuple(tradeoffs(made, costs)),
    )
    with replacing(out) as folder:  # checks `out` before the work of rendering
        _write(folder, pages.render(content))
        shutil.copytree(STATIC, folder / "static")
        _write_data(folder / "data", frame)
    eager = off_board(content.rows, ("accuracy", *TASKS))
    return Built(
        index=out.absolute() / "index.html",
        records=frame.height,
        boards=len(made),
        costs=len(costs),
        tradeoffs=len(content.tradeoffs),
        eager=sum(left.records for left in eager),
        problems=tuple(problems),
    )


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _write_data(folder: Path, frame: pl.DataFrame) -> None:
    folder.mkdir()
    frame.write_parquet(folder / "records.parquet")
    sources.flat(frame).write_csv(folder / "records.csv")


def picture(results: Sequence[Path], suite: str = "", suites: Path | None = None) -> str:
    """One suite's accuracy charts side by side as SVG, for a document.

    Args:
        results: folders of records.
        suite: its name; may be left out where the records are of one suite.
        suites: folder of suite files, for the question that heads the picture.

    Raises:
        SiteError: if there is no accuracy board of the suite, or several suites to choose from.
    """
    frame, _ = sources.read(results)
    made = boards_.boards(frame, catalogue_.load())
    names = sorted({board.suite for board in made})
    if not suite and len(names) == 1:
        suite = names[0]
    chosen = [board for board in made if board.suite == suite]
    if not chosen:
        asked = f"suite {suite!r} has no accuracy board" if suite else "no suite was named"
        raise SiteError(f"{asked}; the records hold: {', '.join(names) or 'none of any suite'}")
    title = sources.questions(suites).get(suite, f"Suite {suite}")
    return charts.picture(chosen, title, _caption(chosen))


def _caption(chosen: Sequence[boards_.Board]) -> list[str]:
    rows = [row for board in chosen for row in board.rows]
    seeds = len({row.seed for row in rows})
    hardware = ", ".join(sorted({row.hardware_class for row in rows}))
    days = sorted({row.started_at[:10] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    lines = [
        f"{len(rows)} cells, {seeds} seeds, mean and 95% t interval; {hardware}; measured {when}.",
        "✕: at least one seed gave no result.",
    ]
    if any(board.samples_differ for board in chosen):
        lines.append(
            "Some batch sizes saw more samples than others: compare methods at one batch size, "
            "not one method across batch sizes."
        )
    return lines
