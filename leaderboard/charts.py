"""Charts as SVG text, drawn at build time: accuracy against batch size with interval bands.

The vertical axis is spaced by the logarithm of the error, and labelled with accuracies: a collapse
to 35% and a difference between 94% and 96% are then readable in one picture. Lines are labelled
where they end. Text and axes take colours that the page's style sheet replaces in the dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from normbench.leaderboard import chart_layout as layout
from normbench.leaderboard.boards import Board
from normbench.leaderboard.chart_layout import Axes, axes_of
from normbench.leaderboard.palette import MUTED, Style, assign

INK, FAINT, GRID = "#24292f", "#57606a", "#d8dee4"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
WIDTH = 560
PICTURE_WIDTH = 300
LABEL_WIDTH = 250
ERROR_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 70, 100)


def accuracy_chart(
    board: Board,
    styles: Mapping[str, Style] | None = None,
    *,
    axes: Axes | None = None,
    focus: str = "",
) -> str:
    """Mean test accuracy against batch size, one line per variant, bands for the intervals.

    Args:
        board: what to draw; failures become crosses at the foot of the chart.
        styles: one style per variant, so that charts of one site agree.
        axes: shared with other charts, so that they can be compared; the board's own by default.
        focus: a method to show in colour, with the reference; the others step back.

    Returns:
        SVG text.
    """
    styles = styles or assign(v.name for v in board.variants)
    axes = axes or axes_of([board], WIDTH)
    return svg(_Drawing(board, axes, _emphasis(board, styles, focus)).panel(""))


def picture(boards: Sequence[Board], title: str, caption: Sequence[str] = ()) -> str:
    """Boards side by side as one SVG with a title and a white ground, for a document.

    Args:
        boards: of one suite; all panels have the same axes, and the last names the lines.
        title: the heading.
        caption: lines below it.
    """
    names = list(dict.fromkeys(v.name for board in boards for v in board.variants))
    styles, axes = assign(names), axes_of(boards, PICTURE_WIDTH)
    drawings = [_Drawing(b, axes, styles, b is boards[-1]) for b in boards]
    panels = alt.HConcatChart(
        hconcat=[d.panel(f"{d.board.model} on {d.board.dataset}") for d in drawings], spacing=24
    )
    heading = alt.TitleParams(
        title, subtitle=list(caption), fontSize=17, subtitleFontSize=12, offset=16,
        anchor="start", color=INK, subtitleColor=FAINT, subtitlePadding=5,
    )  # fmt: skip
    return svg(panels.properties(padding=18, title=heading), ground="white")


def description(board: Board) -> str:
    """What the chart shows, in words: its text alternative."""
    first = board.batch_sizes[0]
    entries = {v.name: v.entries[first].interval for v in board.variants if first in v.entries}
    means = [f"{name} {100 * i.mean:.1f}%" for name, i in entries.items() if i is not None]
    return (
        f"Line chart of mean test accuracy against batch size for {board.model} on "
        f"{board.dataset}, with 95% intervals. At batch size {first}: "
        f"{', '.join(means) or 'no result'}. The table below has every value."
    )


def _emphasis(board: Board, styles: Mapping[str, Style], focus: str) -> dict[str, Style]:
    return {
        v.name: styles[v.name]
        if not focus or v.method == focus or v.name == board.reference
        else Style(MUTED, styles[v.name].dash, styles[v.name].marker)
        for v in board.variants
    }


@dataclass(frozen=True, slots=True)
class _Drawing:
    """One panel; `styles` may name variants of neighbouring panels too."""

    board: Board
    axes: Axes
    styles: Mapping[str, Style]
    labelled: bool = True

    def panel(self, title: str) -> alt.LayerChart:
        heading = alt.TitleParams(title, fontSize=13, anchor="start", color=INK, offset=8)
        return alt.LayerChart(
            layer=[*self._lines(), *(self._labels() if self.labelled else [])],
            width=self.axes.width + (LABEL_WIDTH if self.labelled else 0),
            height=layout.HEIGHT,
            title=heading if title else alt.Undefined,
        )

    def _lines(self) -> list[alt.Chart]:
        points, colour = layout.points(self.board, self.axes), self._colour()
        bands = _chart(points).mark_area(opacity=0.12)
        lines = _chart(points).mark_line(strokeWidth=2)
        markers = _chart(points).mark_point(filled=True, size=46, opacity=1)
        crosses = _chart(layout.failures(self.board, self.axes)).mark_text(
            text="✕", fontSize=12, fontWeight="bold"
        )
        x, y = self._x(), self._y("error")
        return [
            bands.encode(x=x, y=self._y("low"), y2="high:Q", color=colour),
            lines.encode(x=x, y=y, color=colour, strokeDash=self._by("dash", alt.StrokeDash)),
            markers.encode(x=x, y=y, color=colour, shape=self._by("marker", alt.Shape)),
            crosses.encode(x=_pixels("x", alt.X), y=_pixels("y", alt.Y), color=colour),
        ]

    def _labels(self) -> list[alt.Chart]:
        others = [name for name in self.styles if name not in {v.name for v in self.board.variants}]
        ends = layout.labels(self.board, self.axes, others)
        colour, x, y = self._colour(), _pixels("x", alt.X), _pixels("to", alt.Y)
        leaders = _chart([end for end in ends if end["drawn"]]).mark_rule(opacity=0.6)
        keys = _chart(ends).mark_point(filled=True, size=46, opacity=1)
        names = _chart(ends).mark_text(align="left", fontSize=12, dx=9, color=INK)
        start, height = _pixels("start", alt.X), _pixels("from", alt.Y)
        return [
            leaders.encode(x=start, x2="x:Q", y=height, y2="to:Q", color=colour),
            keys.encode(x=x, y=y, color=colour, shape=self._by("marker", alt.Shape)),
            names.encode(x=x, y=y, text="name:N"),
        ]

    def _x(self) -> alt.X:
        axis = alt.Axis(values=list(self.board.batch_sizes), format="d", grid=False)
        domain = [self.axes.first, self.axes.last]
        span = [0, self.axes.width]
        scale = alt.Scale(type="log", base=2, domain=domain, nice=False, range=span)
        return alt.X("batch:Q", title="batch size", scale=scale, axis=axis)

    def _y(self, field: str) -> alt.Y:
        best, worst = self.axes.best, self.axes.worst
        ticks = [tick for tick in ERROR_TICKS if best <= tick <= worst]
        scale = alt.Scale(type="log", domain=[best, worst], nice=False, range=[0, layout.HEIGHT])
        axis = alt.Axis(values=ticks, labelExpr="format(100 - datum.value, '~g')")
        title = "test accuracy, % (spaced by log error)"
        return alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)

    def _colour(self) -> alt.Color:
        scale = alt.Scale(domain=list(self.styles), range=[s.colour for s in self.styles.values()])
        return alt.Color("variant:N", legend=None, scale=scale)

    def _by(self, what: str, channel: Any) -> Any:
        values = [getattr(style, what) for style in self.styles.values()]
        scale = alt.Scale(domain=list(self.styles), range=values)
        return channel("variant:N", legend=None, scale=scale)


def _chart(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def _pixels(field: str, channel: Any) -> Any:
    """A channel whose values are pixels already."""
    return channel(f"{field}:Q", scale=None, axis=None)


def svg(chart: alt.LayerChart | alt.HConcatChart, ground: str = "transparent") -> str:
    """The drawing as text, in the site's type and in colours that its style sheet knows."""
    spec = (
        chart.configure(font=FONT, background=ground)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=FAINT,
            titleColor=FAINT,
            domainColor=GRID,
            tickColor=GRID,
            gridColor=GRID,
            gridOpacity=0.7,
            labelFontSize=11,
            titleFontSize=11.5,
            titleFontWeight="normal",
            titlePadding=8,
        )
        .configure_legend(
            labelColor=FAINT,
            titleColor=FAINT,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelLimit=300,
        )
        .to_dict(context={"pre_transform": False})
    )
    return str(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
