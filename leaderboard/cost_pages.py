"""What the pages of speed, memory and accuracy against cost show, ready for their templates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from normbench.cells import digest
from normbench.leaderboard import cost_charts, cost_fields, tradeoff_charts
from normbench.leaderboard.boards import Board
from normbench.leaderboard.costs import CostBoard, CostEntry, CostVariant
from normbench.leaderboard.provenance import off_board
from normbench.leaderboard.rows import Row
from normbench.leaderboard.tradeoff import Tradeoff

SPEED, MEMORY = ("throughput", "layer"), ("memory",)
TRADEOFF = "tradeoff.html"
NAMES = {"speed.html": "Speed", "memory.html": "Memory", TRADEOFF: "Accuracy against cost"}
"""Pages in the order of the site's menu."""
PAGES = {"throughput": "speed.html", "layer": "speed.html", "memory": "memory.html"}
COST_NAMES = {
    "throughput": "the time of a training step",
    "memory": "the bytes kept for the backward pass",
}


def render(
    environment: Environment,
    costs: Sequence[CostBoard],
    tradeoffs: Sequence[Tradeoff],
    rows: Sequence[Row],
) -> dict[str, str]:
    """The pages there are records for: relative path to HTML text."""
    pages = {}
    for name, tasks in (("speed.html", SPEED), ("memory.html", MEMORY)):
        boards = [board for board in costs if board.task in tasks]
        eager = off_board(rows, tasks)
        if boards or eager:
            pages[name] = environment.get_template(name).render(
                root="", sections=sections(boards), eager=eager
            )
    if tradeoffs:
        pages[TRADEOFF] = environment.get_template(TRADEOFF).render(
            root="", groups=_groups(tradeoffs)
        )
    return pages


def of_method(costs: Iterable[CostBoard], method: str) -> list[dict[str, Any]]:
    """By task, a method's entries on all boards, for its own page."""
    by_task: dict[str, list[tuple[CostBoard, list[CostEntry]]]] = defaultdict(list)
    for board in costs:
        mine = [variant for variant in board.variants if variant.method == method]
        if entries := [entry for variant in mine for entry in variant.entries.values()]:
            by_task[board.task].append((board, entries))
    return [
        {
            "task": task,
            "page": PAGES[task],
            "fields": _union(board for board, _ in found),
            "boards": found,
        }
        for task, found in by_task.items()
    ]


def sections(boards: Iterable[CostBoard]) -> list[dict[str, Any]]:
    """Boards by hardware class, layers alone in sections of their own."""
    groups: dict[tuple[bool, str], list[CostBoard]] = defaultdict(list)
    for board in boards:
        groups[board.task == "layer", board.hardware_class].append(board)
    return [
        {
            "hardware": hardware,
            "layers": layers,
            "anchor": f"on-{digest([layers, hardware])}",
            "items": [_item(board) for board in found],
        }
        for (layers, hardware), found in sorted(groups.items())
    ]


def _item(board: CostBoard) -> dict[str, Any]:
    panels = _panels(board)
    what = "the bytes" if board.task == "memory" else "the time"
    return {
        "board": board,
        "families": _families(board),
        "fields": cost_fields.fields(board),
        "room": cost_fields.room_fields(board) if board.task == "memory" else [],
        "svg": Markup(cost_charts.cost_chart(board, panels)) if panels else "",
        "description": cost_charts.description(board, panels[0][1], what) if panels else "",
    }


def _panels(board: CostBoard) -> list[tuple[str, str]]:
    """Headings and ratios to draw: none of layers, whose many shapes are for a table."""
    if board.task == "layer":
        return []
    wanted: Mapping[str, list[tuple[str, str]]] = {
        "throughput": [("launched by Python", "ratio"), ("replayed as a graph", "graph_ratio")],
        "memory": [("kept for the backward pass", "saved_ratio"), ("peak", "peak_ratio")],
    }
    found = [(told, name) for told, name in wanted[board.task] if name in board.metrics]
    alone = board.task == "throughput" and len(found) == 1
    return [("", found[0][1])] if alone else found


def _families(board: CostBoard) -> dict[str, list[CostVariant]]:
    found: dict[str, list[CostVariant]] = defaultdict(list)
    for variant in board.variants:
        found[variant.family].append(variant)
    return dict(found)


def _union(boards: Iterable[CostBoard]) -> list[cost_fields.Field]:
    found = {field: None for board in boards for field in cost_fields.fields(board)}
    order = [field for fields in cost_fields.FIELDS.values() for field in fields]
    return sorted(found, key=order.index)


def _groups(tradeoffs: Sequence[Tradeoff]) -> list[dict[str, Any]]:
    by_board: dict[str, tuple[Board, list[dict[str, Any]]]] = {}
    for made in tradeoffs:
        key = digest(list(made.board.rows[0].board_key))
        by_board.setdefault(key, (made.board, []))[1].append(_weighed(made, key))
    return [
        {"anchor": f"weighed-{key}", "board": board, "items": items}
        for key, (board, items) in by_board.items()
    ]


def _weighed(made: Tradeoff, key: str) -> dict[str, Any]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for variant, why in made.left_out:
        reasons[why].append(variant)
    return {
        "tradeoff": made,
        "anchor": f"weighed-{key}-{made.batch_size}-{made.costs.anchor}",
        "cost": COST_NAMES[made.costs.task],
        "page": PAGES[made.costs.task],
        "svg": Markup(tradeoff_charts.tradeoff_chart(made)),
        "description": tradeoff_charts.description(made, COST_NAMES[made.costs.task]),
        "left_out": dict(reasons),
    }
