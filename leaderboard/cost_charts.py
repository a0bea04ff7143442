"""Charts of costs as SVG text, drawn at build time: a row of dots and intervals per variant.

The axis is logarithmic, so that half and twice as long lie as far from the line at 1. A dot is
hollow where its interval holds 1, or where it has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from normbench.leaderboard.charts import FAINT, INK, svg
from normbench.leaderboard.costs import CostBoard, Figure
from normbench.leaderboard.palette import Style, assign
from normbench.stats import significant

WIDTH, PANEL_WIDTH = 640, 330
NAME_WIDTH = 270
LEAST_ROW, DOT_ROW = 19, 13
"""Pixels of a variant's row: at least, and per dot in it."""
TICKS = (1, 2, 5, 10, 0.5, 1.5, 3, 20, 50, 100, 0.2, 0.1, 0.8, 1.2, 0.9, 1.1, 0.7, 0.95, 1.05)
"""Of ratios, those to keep first where there is no room for all."""


@dataclass(frozen=True, slots=True)
class Span:
    """The ends of a logarithmic axis."""

    low: float
    high: float

    def clamp(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(max(value, self.low), self.high)

    def ticks(self, candidates: Iterable[float], width: float, gap: float = 34) -> list[float]:
        """The candidates within, without those less than `gap` pixels from an earlier one."""
        kept: list[float] = []
        for tick in candidates:
            if self.low <= tick <= self.high and all(
                width * abs(math.log(tick / other)) >= gap * math.log(self.high / self.low)
                for other in kept
            ):
                kept.append(tick)
        return sorted(kept)


def span_of(figures: Sequence[Figure]) -> Span:
    """An axis that holds 1, every ratio, and of their intervals what is not far out."""
    values = [figure.value for figure in figures]
    least, most = min(values, default=1.0), max(values, default=1.0)
    lows = [f.low for f in figures if f.bounded and f.low > least / 1.5]
    highs = [f.high for f in figures if f.bounded and f.high < most * 1.5]
    low, high = min([1.0, least, *lows]), max([1.0, most, *highs])
    return Span(low / 1.06, high * 1.06)


def cost_chart(board: CostBoard, panels: Sequence[tuple[str, str]]) -> str:
    """Ratios to batch_norm, a row per variant and a dot per column of the board.

    Args:
        board: what to draw; failures become crosses at the left end of their row.
        panels: heading and name of a ratio, side by side; all have the same axis.

    Returns:
        SVG text.
    """
    figures = [f for _, name in panels for e in board.entries if (f := e.ratio(name)) is not None]
    span = span_of(figures)
    width = WIDTH if len(panels) == 1 else PANEL_WIDTH
    drawings = [
        _Panel(board, name, title, span, width, index == 0)
        for index, (title, name) in enumerate(panels)
    ]
    if len(drawings) == 1:
        return svg(drawings[0].chart())
    return svg(alt.HConcatChart(hconcat=[d.chart() for d in drawings], spacing=24))


def label(column: tuple[int, ...]) -> str:
    """`32`, or `32×64×8×8` for a layer's input."""
    return "×".join(map(str, column))


@dataclass(frozen=True, slots=True)
class _Panel:
    board: CostBoard
    ratio: str
    title: str
    span: Span
    width: int
    named: bool

    def chart(self) -> alt.LayerChart:
        board = self.board
        one = _chart([{"x": 1.0}]).mark_rule(color=FAINT, strokeWidth=1.5)
        points, colour = self._points(), self._by("colour", alt.Color)
        intervals = _chart([p for p in points if p["bounded"]]).mark_rule(strokeWidth=2)
        dots = _chart(points).mark_point(size=44, opacity=1, strokeWidth=1.6)
        fill = alt.Fill("fill:N", scale=None, legend=None)
        crosses = _chart(self._failures()).mark_text(align="left", fontSize=11, fontWeight="bold")
        heading = alt.TitleParams(
            self.title, fontSize=13, anchor="start", frame="group", color=INK, offset=8
        )
        return alt.LayerChart(
            layer=[
                one.encode(x=self._x("x")),
                intervals.encode(
                    x=self._x("low"), x2="high:Q", color=colour, **self._place()
                ),
                dots.encode(
                    x=self._x("ratio"), color=colour, fill=fill, **self._place(),
                    shape=self._by("marker", alt.Shape),
                ),
                crosses.encode(x=alt.value(4), text="text:N", color=colour, **self._place()),
            ],
            width=self.width,
            height=len(board.variants) * max(LEAST_ROW, DOT_ROW * len(board.columns)),
            title=heading if self.title else alt.Undefined,
        )  # fmt: skip

    def _points(self) -> list[dict[str, Any]]:
        styles = self._styles()
        rows = []
        for entry in self.board.entries:
            if (figure := entry.ratio(self.ratio)) is None:
                continue
            name = label(entry.column)
            clear = figure.over == "count" or figure.apart
            rows.append(
                {
                    "variant": entry.variant, "column": name, "ratio": figure.value,
                    "bounded": figure.bounded and figure.over != "count",
                    "low": self.span.clamp(figure.low) if figure.bounded else None,
                    "high": self.span.clamp(figure.high) if figure.bounded else None,
                    "fill": styles[name].colour if clear else "transparent",
                }
            )  # fmt: skip
        return rows

    def _failures(self) -> list[dict[str, Any]]:
        return [
            {
                "variant": entry.variant, "column": label(entry.column),
                "text": "✕ " + ", ".join(entry.failures),
            }
            for entry in self.board.failures
            if not entry.measured
        ]  # fmt: skip

    def _styles(self) -> dict[str, Style]:
        return assign(label(column) for column in self.board.columns)

    def _x(self, field: str) -> alt.X:
        domain = [self.span.low, self.span.high]
        scale = alt.Scale(type="log", domain=domain, nice=False)
        ticks = self.span.ticks(TICKS, self.width)
        axis = alt.Axis(values=ticks, format="~g", orient="top")
        return alt.X(f"{field}:Q", title="ratio to batch_norm", scale=scale, axis=axis)

    def _place(self) -> dict[str, Any]:
        """A row per variant, and within it a place per column."""
        axis = alt.Axis(
            labels=self.named, ticks=False, domain=False, grid=True, labelLimit=NAME_WIDTH,
            labelColor=INK, title=None, labelPadding=8,
        )  # fmt: skip
        order = [variant.name for variant in self.board.variants]
        scale = alt.Scale(domain=order, paddingInner=0, paddingOuter=0)
        place: dict[str, Any] = {"y": alt.Y("variant:N", sort=None, scale=scale, axis=axis)}
        if len(self.board.columns) > 1:
            places = alt.Scale(type="point", domain=list(self._styles()), padding=0.5)
            place["yOffset"] = alt.YOffset("column:N", sort=None, scale=places)
        return place

    def _by(self, what: str, channel: Any) -> Any:
        styles = self._styles()
        scale = alt.Scale(domain=list(styles), range=[getattr(s, what) for s in styles.values()])
        legend = alt.Legend(title="batch size", orient="top", direction="horizontal")
        return channel("column:N", scale=scale, legend=legend if len(styles) > 1 else None)


def description(board: CostBoard, name: str, what: str) -> str:
    """What a chart shows, in words: its text alternative."""
    first = board.columns[-1]
    figures = {
        v.name: figure
        for v in board.variants
        if first in v.entries and (figure := v.entries[first].ratio(name)) is not None
    }
    ordered = sorted(figures, key=lambda variant: figures[variant].value)
    ends = ", ".join(f"{v} {significant(figures[v].value)}" for v in (*ordered[:1], *ordered[-1:]))
    return (
        f"Dots and intervals of the ratio of {what} to that of batch_norm, a row per variant, "
        f"for {board.model} on {board.hardware_class}. At batch size {label(first)} the lowest "
        f"and the highest are: {ends or 'no result'}. The table below has every value."
    )


def _chart(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))
