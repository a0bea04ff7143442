"""What tables of costs show, and in which words and units."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from normbench.cells import MAIN_METRICS
from normbench.leaderboard.costs import CostBoard, CostEntry, Figure
from normbench.leaderboard.rows import Row
from normbench.stats import significant

MODES: Mapping[str, str] = {
    "train": "training step",
    "forward": "forward in training",
    "inference": "inference",
    "inference_folded": "inference, folded",
}
PARTS: Mapping[str, str] = {"forward": "forward", "both": "forward and backward"}
_IN_TITLE = frozenset(
    {"mode", "part", "compile", "processes", "activation", "image_size", "layout", "budgets_gib"}
)
"""Options that a title tells, or a table's columns."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a table.

    Attributes:
        ratio: whether the metric is a ratio to batch_norm, shown with its interval.
        factor: from the record's unit to the heading's.
        whole: whether the metric counts things.
    """

    heading: str
    metric: str
    ratio: bool = False
    factor: float = 1.0
    whole: bool = False

    def text(self, entry: CostEntry) -> str:
        """The median over seeds as text; a dash where no record has it."""
        value = entry.median(self.metric)
        if value is None:
            return "–"
        return f"{value:,.0f}" if self.whole else significant(value * self.factor)


FIELDS: Mapping[str, tuple[Field, ...]] = {
    "throughput": (
        Field("ratio", "ratio", ratio=True),
        Field("ms", "seconds", factor=1e3),
        Field("images/s", "images_per_second"),
        Field("norms, %", "norm_share", factor=100),
        Field("graph ratio", "graph_ratio", ratio=True),
        Field("graph ms", "graph_seconds", factor=1e3),
        Field("J/run", "energy_joules"),
        Field("left unfolded", "not_folded", whole=True),
        Field("compiling, s", "compile_seconds"),
    ),
    "memory": (
        Field("kept, ratio", "saved_ratio", ratio=True),
        Field("kept, MiB", "saved_bytes", factor=2**-20),
        Field("by norms, MiB", "norm_saved_bytes", factor=2**-20),
        Field("peak, ratio", "peak_ratio", ratio=True),
        Field("peak, MiB", "peak_allocated_bytes", factor=2**-20),
    ),
    "layer": (
        Field("ratio", "ratio", ratio=True),
        Field("µs", "seconds", factor=1e6),
        Field("communication, %", "communication_share", factor=100),
        Field("graph ratio", "graph_ratio", ratio=True),
        Field("graph µs", "graph_seconds", factor=1e6),
    ),
}
"""Of one column of a board, the most important first."""

_ANY_BATCH = (
    Field("parameters", "parameters", whole=True),
    Field("in norms", "norm_parameters", whole=True),
    Field("buffers in norms", "norm_buffers", whole=True),
    Field("MiB per sample", "bytes_per_sample", factor=2**-20),
)


def fields(board: CostBoard) -> list[Field]:
    """The fields of a board's columns that some record has."""
    return [field for field in FIELDS[board.task] if field.metric in board.metrics]


def room_fields(board: CostBoard) -> list[Field]:
    """What a memory board says of any batch size: parameters, and the largest batch per budget."""
    budgets = sorted(
        {m[1] for name in board.metrics if (m := re.search(r"largest_batch_([\d.]+)gib$", name))},
        key=float,
    )
    found = list(_ANY_BATCH)
    for gib in budgets:
        for told, prefix in (("predicted", "predicted_"), ("run", "")):
            name = f"{prefix}largest_batch_{gib}gib"
            found.append(Field(f"{gib} GiB, {told}", name, whole=True))
    return [field for field in found if field.metric in board.metrics]


def bounds(figure: Figure) -> str:
    """`[0.98, 1.05]`; empty where there is no interval, or none is needed."""
    if not figure.bounded or figure.over == "count":
        return ""
    return f"[{significant(figure.low)}, {significant(figure.high)}]"


def title(board: CostBoard) -> str:
    """What was measured, in words, so that the boards of a page are told apart."""
    config = board.config
    if board.task == "layer":
        processes = int(config.get("processes", 1))
        parts = [
            str(PARTS.get(config.get("part", ""), config.get("part", ""))),
            f"{processes} processes" if processes > 1 else "",
            f"then {config['activation']}" if config.get("activation", "none") != "none" else "",
        ]
    else:
        mode = str(config.get("mode", ""))
        parts = [board.model, MODES.get(mode, mode), "compiled" if config.get("compile") else ""]
    size = f"{config['image_size']}×{config['image_size']} " if "image_size" in config else ""
    parts += [board.precision, size + str(config.get("layout", "")).upper()]
    return ", ".join(part.strip() for part in parts if part.strip())


def conditions(board: CostBoard) -> str:
    """The rest of what must agree, and the versions of torch that measured."""
    parts = [_told(name, value) for name, value in board.config.items() if name not in _IN_TITLE]
    parts += [f"{name} {value}" for name, value in board.model_args.items()]
    parts += [f"protocol {board.protocol}", f"setting {board.setting}"]
    return " · ".join([*parts, *_torch(board.rows)])


def main_figure(row: Row) -> str:
    """The figure that a record stands for, named; a dash where it has none."""
    metric = MAIN_METRICS.get(row.task, "")
    if metric not in row.metrics:
        return "–"
    value, name = row.metrics[metric], metric.replace("_", " ")
    return f"{name} " + (f"{100 * value:.2f}%" if row.task == "accuracy" else significant(value))


def _told(name: str, value: Any) -> str:
    if name == "threads":
        return f"{value} thread{'' if value == 1 else 's'}"
    return f"{name.replace('_', ' ')} {value}"


def _torch(rows: Iterable[Row]) -> list[str]:
    packages = (row.environment.get("packages") or {} for row in rows)
    found = sorted({str(p["torch"]) for p in packages if "torch" in p})
    return [f"torch {', '.join(found)}"] if found else []
