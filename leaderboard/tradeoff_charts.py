"""Accuracy against cost as SVG text: numbered points with intervals both ways, and a key beside.

Both axes are logarithmic, the vertical one in the error, as on charts of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from normbench.leaderboard.charts import FAINT, INK, svg
from normbench.leaderboard.cost_charts import TICKS, Span, span_of
from normbench.leaderboard.palette import COLOURS, MUTED
from normbench.leaderboard.tradeoff import Place, Point, Tradeoff
from normbench.stats import significant

WIDTH, HEIGHT = 540, 380
KEY_WIDTH, KEY_ROW = 290, 17
ERRORS = (
    1, 10, 100, 2, 5, 20, 50, 3, 30, 0.5, 0.2, 0.1, 4, 6, 8, 15, 70, 40, 7, 60, 80, 9, 25, 35, 12,
)  # fmt: skip
"""Labelled errors in percent, those to keep first where there is no room for all."""
PLACES: dict[Place, tuple[str, str, str, str]] = {
    "front": ("on the front", COLOURS[0], "circle", COLOURS[0]),
    "not separated": ("not separated from it", COLOURS[1], "diamond", "transparent"),
    "dominated": ("behind it", MUTED, "square", "transparent"),
}
"""What the key says, colour, marker and filling."""
NEAR = ((11, 0), (-11, 0), (0, -12), (0, 12), (10, -10), (-10, -10), (10, 10), (-10, 10), (21, 0))
"""Where a point's number may stand, in pixels from it, the best place first."""


def tradeoff_chart(tradeoff: Tradeoff) -> str:
    """The points of a trade-off, numbered as in its table.

    Returns:
        SVG text.
    """
    return svg(_Drawing(tradeoff, *_spans(tradeoff.points)).chart())


def description(tradeoff: Tradeoff, cost: str) -> str:
    """What the chart shows, in words: its text alternative."""
    front = ", ".join(
        f"{p.variant} ({100 * p.accuracy.mean:.1f}%, {significant(p.cost.value)})"
        for p in tradeoff.front
    )
    return (
        f"Scatter chart of test accuracy against {cost} at batch size {tradeoff.batch_size}, "
        f"{len(tradeoff.points)} variants. On the front, from the cheapest: {front}. "
        "The table below has every value."
    )


def _spans(points: Sequence[Point]) -> tuple[Span, Span]:
    """Of ratios, and of errors in percent: all means, and intervals that reach not too far out."""
    means = [100 * (1 - p.accuracy.mean) for p in points]
    ends = [100 * (1 - end) for p in points for end in _bounds(p)]
    least = max(min([min(means), *(e for e in ends if e > min(means) / 2)]), 0.1)
    most = min(max([max(means), *(e for e in ends if e < max(means) * 2), least * 1.5]), 100.0)
    return span_of([p.cost for p in points]), Span(least / 1.1, most * 1.1)


def _bounds(point: Point) -> tuple[float, ...]:
    return (point.accuracy.low, point.accuracy.high) if point.accuracy.bounded else ()


@dataclass(frozen=True, slots=True)
class _Drawing:
    tradeoff: Tradeoff
    ratios: Span
    errors: Span

    def chart(self) -> alt.LayerChart:
        points, colour = self._points(), self._by(1, alt.Color)
        front = [points[i] for i, p in enumerate(self.tradeoff.points) if p.place == "front"]
        x, y = self._x("ratio"), self._y("error")
        stairs = _chart(front).mark_line(
            interpolate="step-after", strokeWidth=1, strokeDash=[3, 3], color=COLOURS[0]
        )
        across = _chart([p for p in points if p["wide"]]).mark_rule(opacity=0.55)
        down = _chart([p for p in points if p["tall"]]).mark_rule(opacity=0.55)
        dots = _chart(points).mark_point(size=60, opacity=1, strokeWidth=1.6)
        shape = self._by(2, alt.Shape)
        fill = self._by(3, alt.Fill)
        return alt.LayerChart(
            layer=[
                _chart([{"ratio": 1.0}]).mark_rule(color=FAINT, strokeWidth=1.5).encode(x=x),
                stairs.encode(x=x, y=y, order=alt.Order("ratio:Q")),
                across.encode(x=self._x("low"), x2="high:Q", y=y, color=colour),
                down.encode(x=x, y=self._y("best"), y2="worst:Q", color=colour),
                dots.encode(x=x, y=y, color=colour, shape=shape, fill=fill),
                *self._names(points),
            ],
            width=WIDTH + KEY_WIDTH,
            height=max(HEIGHT, KEY_ROW * len(points)),
        )

    def _points(self) -> list[dict[str, Any]]:
        rows = []
        for number, p in enumerate(self.tradeoff.points, 1):
            error = self.errors.clamp(100 * (1 - p.accuracy.mean))
            ends = [self.errors.clamp(100 * (1 - end)) for end in _bounds(p)] or [error, error]
            told = PLACES[p.place][0]
            rows.append(
                {
                    "number": str(number), "name": f"{number}  {p.variant}", "place": told,
                    "ratio": p.cost.value, "error": error, "worst": ends[0], "best": ends[1],
                    "tall": p.accuracy.bounded, "wide": p.cost.over in ("rounds", "seeds"),
                    "low": self.ratios.clamp(p.cost.low) if p.cost.bounded else None,
                    "high": self.ratios.clamp(p.cost.high) if p.cost.bounded else None,
                }
            )  # fmt: skip
        return rows

    def _names(self, points: list[dict[str, Any]]) -> list[alt.Chart]:
        """Each point's number beside it, and the names beside the chart."""
        height = max(HEIGHT, KEY_ROW * len(points))
        spots = [
            (
                WIDTH * _share(p["ratio"], self.ratios),
                height * _share(p["error"], self.errors),
            )
            for p in points
        ]
        beside = [
            {"x": x, "y": y, "text": p["number"]}
            for p, (x, y) in zip(points, numbers(spots), strict=True)
        ]
        key = [
            {"x": WIDTH + 36, "y": KEY_ROW * (i + 0.5), "text": p["name"], "place": p["place"]}
            for i, p in enumerate(points)
        ]
        at = {
            "x": alt.X("x:Q", scale=None, axis=None), "y": alt.Y("y:Q", scale=None, axis=None)
        }  # fmt: skip
        marks = _chart(key).mark_point(size=46, opacity=1, strokeWidth=1.6)
        colour, shape = self._by(1, alt.Color), self._by(2, alt.Shape)
        fill = self._by(3, alt.Fill)
        return [
            _chart(beside).mark_text(fontSize=11, color=INK).encode(text="text:N", **at),
            marks.encode(color=colour, shape=shape, fill=fill, **at),
            _chart(key).mark_text(align="left", fontSize=12, dx=10, color=INK, limit=KEY_WIDTH - 50)
            .encode(text="text:N", **at),
        ]  # fmt: skip

    def _x(self, field: str) -> alt.X:
        span = self.ratios
        domain, ticks = [span.low, span.high], span.ticks(TICKS, WIDTH)
        scale = alt.Scale(type="log", domain=domain, nice=False, range=[0, WIDTH])
        what = "time of a training step" if self.tradeoff.costs.task == "throughput" else "memory"
        title = f"{what}, ratio to batch_norm (left is cheaper)"
        axis = alt.Axis(values=ticks, format="~g", titleAnchor="start")
        return alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)

    def _y(self, field: str) -> alt.Y:
        span, height = self.errors, max(HEIGHT, KEY_ROW * len(self.tradeoff.points))
        domain, ticks = [span.low, span.high], span.ticks(ERRORS, height, 22)
        scale = alt.Scale(type="log", domain=domain, nice=False, range=[0, height])
        axis = alt.Axis(values=ticks, labelExpr="format(100 - datum.value, '~g')")
        title = "test accuracy, % (spaced by log error)"
        return alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)

    def _by(self, index: int, channel: Any) -> Any:
        looks = list(PLACES.values())
        scale = alt.Scale(domain=[look[0] for look in looks], range=[look[index] for look in looks])
        legend = alt.Legend(
            title=None, orient="top", direction="horizontal", symbolOpacity=1, symbolStrokeWidth=1.6
        )
        return channel("place:N", scale=scale, legend=legend)


def numbers(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A place beside each spot, away from other spots and from the numbers placed before."""
    taken = list(spots)
    found = []
    for x, y in spots:
        places = [(x + dx, y + dy) for dx, dy in NEAR]
        best = max(places, key=lambda place: min(round(_gap(place, other)) for other in taken))
        free = (p for p in places if all(_gap(p, other) >= 10 for other in taken))
        chosen = next(free, best)
        taken.append(chosen)
        found.append(chosen)
    return found


def _gap(a: tuple[float, float], b: tuple[float, float]) -> float:
    return math.hypot(a[0] - b[0], a[1] - b[1])


def _share(value: float, span: Span) -> float:
    return math.log(value / span.low) / math.log(span.high / span.low)


def _chart(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))
