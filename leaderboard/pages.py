"""Boards to HTML: what each page shows, rendered with Jinja2 and autoescape on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import normbench
from normbench.cells import digest
from normbench.leaderboard import charts, cost_charts, cost_fields, cost_pages, equations
from normbench.leaderboard.boards import Board, contrasts, is_older
from normbench.leaderboard.capabilities import Matrix, best
from normbench.leaderboard.catalogue import Catalogue, Method, Probe
from normbench.leaderboard.chart_layout import axes_of
from normbench.leaderboard.costs import CostBoard
from normbench.leaderboard.palette import Style, assign
from normbench.leaderboard.provenance import Eager, conditions, off_board, summarise
from normbench.leaderboard.rows import Row
from normbench.leaderboard.tradeoff import Tradeoff
from normbench.stats import RANKING_SEEDS, Interval, significant

MAX_LISTED = 3000
"""Records that records.html lists; the downloads always hold all."""


@dataclass(frozen=True, slots=True)
class Content:
    """Everything the pages are made from.

    Attributes:
        rows: all records, older code and repeats included.
        questions: question by suite name, where the suite's file was at hand.
        problems: record files that could not be read.
        matrices: what methods can do; empty if no record says.
        costs: boards of speed and memory.
        tradeoffs: accuracy boards joined with them.
    """

    boards: tuple[Board, ...]
    rows: tuple[Row, ...]
    catalogue: Catalogue
    questions: Mapping[str, str]
    problems: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    costs: tuple[CostBoard, ...]
    tradeoffs: tuple[Tradeoff, ...]

    @property
    def eager(self) -> list[Eager]:
        """Accuracy records that stand on no board."""
        return off_board(self.rows)

    @property
    def cost_pages(self) -> dict[str, str]:
        """The pages of costs that there are, and their names."""
        tasks = {board.task for board in self.costs}
        tasks |= {left.task for left in off_board(self.rows, cost_pages.PAGES)}
        pages = {cost_pages.PAGES[task] for task in tasks}
        pages |= {cost_pages.TRADEOFF} if self.tradeoffs else set()
        return {page: told for page, told in cost_pages.NAMES.items() if page in pages}

    @property
    def methods(self) -> list[Method]:
        """Methods with records, the catalogue's others after them, each group by name."""
        measured = sorted({row.method for row in self.rows})
        rest = sorted(self.catalogue.keys() - set(measured))
        return [self.catalogue.get(name, Method.unknown(name)) for name in [*measured, *rest]]


def render(content: Content) -> dict[str, str]:
    """All pages: relative path to HTML text."""
    environment = _environment(content)
    eager = content.eager
    styles = assign(v.name for board in content.boards for v in board.variants)
    pages = {
        "index.html": environment.get_template("index.html").render(
            root="",
            suites=_suites(content, styles),
            summary=summarise(content.rows),
            eager=eager,
        ),
        "records.html": environment.get_template("records.html").render(
            root="", rows=content.rows[-MAX_LISTED:], total=len(content.rows)
        ),
        "methods/index.html": environment.get_template("methods.html").render(
            root="../", counts=_counts(content.rows)
        ),
    }
    if content.matrices:
        pages["capabilities.html"] = environment.get_template("capabilities.html").render(
            root="", themes=_themes(content.matrices)
        )
    pages |= cost_pages.render(environment, content.costs, content.tradeoffs, content.rows)
    examined = best(row for matrix in content.matrices for row in matrix.rows)
    for method in content.methods:
        pages[f"methods/{slug(method.name)}.html"] = environment.get_template("method.html").render(
            root="../",
            method=method,
            results=_results(content, method, styles),
            eager=[left for left in eager if left.method == method.name],
            examined=examined.get(method.name),
            costs=cost_pages.of_method(content.costs, method.name),
        )
    return pages


def slug(name: str) -> str:
    """A file name for a method; records may come from anywhere, so odd names become a hash."""
    return name if re.fullmatch(r"[a-z0-9_]{1,80}", name) else f"method-{digest(name)}"


def percent(interval: Interval) -> str:
    """`94.8 ±0.4`: a fraction's mean and 95% interval in percent; the mean alone at one seed."""
    shown = interval.scaled(100)
    half = f" ±{shown.high - shown.mean:.1f}" if shown.bounded else ""
    return f"{shown.mean:.1f}{half}"


def points(difference: Interval) -> str:
    """`+59.0 ±5.1`: a difference of fractions in percentage points, with its sign."""
    text = percent(difference)
    if text.startswith("-"):
        return text.replace("-", "−", 1)
    return f"+{text}"


def _suites(content: Content, styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    by_suite: dict[str, list[Board]] = defaultdict(list)
    for board in content.boards:
        by_suite[board.suite].append(board)
    axes = {name: axes_of(boards, charts.WIDTH) for name, boards in by_suite.items()}
    return [
        {
            "name": name,
            "question": content.questions.get(name, ""),
            "conditions": conditions([row for b in boards for row in b.rows]),
            "boards": [
                _board(b, charts.accuracy_chart(b, styles, axes=axes[name])) for b in boards
            ],
        }
        for name, boards in by_suite.items()
    ]


def _board(board: Board, svg: str) -> dict[str, Any]:
    seeds = {entry.seeds for v in board.variants for entry in v.entries.values()}
    return {
        "board": board,
        "anchor": f"board-{digest([board.suite, *_identity(board)])}",
        "svg": Markup(svg),
        "description": charts.description(board),
        "contrasts": contrasts(board),
        "seeds": seeds.pop() if len(seeds) == 1 else None,
    }


def _identity(board: Board) -> tuple[Any, ...]:
    return board.rows[0].board_key


def _results(content: Content, method: Method, styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    return [
        _board(board, charts.accuracy_chart(board, styles, focus=method.name))
        | {"variants": [v for v in board.variants if v.method == method.name]}
        for board in content.boards
        if any(v.method == method.name for v in board.variants)
    ]


def _themes(matrices: Sequence[Matrix]) -> dict[str, list[Probe]]:
    """The probes that any of the matrices has, each once."""
    themes: dict[str, list[Probe]] = defaultdict(list)
    for matrix in matrices:
        for theme, probes in matrix.themes.items():
            themes[theme] += [probe for probe in probes if probe not in themes[theme]]
    return dict(themes)


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.method] += 1
    return counts


def _environment(content: Content) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "points": points, "slug": slug, "mathml": equations.mathml,
        "significant": significant, "bounds": cost_fields.bounds, "cost_title": cost_fields.title,
        "cost_conditions": cost_fields.conditions, "column_label": cost_charts.label,
        "main_figure": cost_fields.main_figure,
    }  # fmt: skip
    environment.globals |= {
        "content": content, "version": normbench.__version__,
        "ranking_seeds": RANKING_SEEDS, "is_older": is_older, "arxiv": _arxiv,
    }  # fmt: skip
    return environment


def _arxiv(identifier: str) -> str:
    """Link to an arXiv paper; empty if the id is not one."""
    known = re.fullmatch(r"\d{4}\.\d{4,5}|[a-z.-]+/\d{7}", identifier)
    return f"https://arxiv.org/abs/{identifier}" if known else ""
