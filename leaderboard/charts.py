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
from normbench.leaderboard.palette import MUTED, Style, assign

INK, FAINT, GRID = "#24292f", "#57606a", "#d8dee4"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
LABEL_WIDTH = 205
ERROR_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def accuracy_chart(
    board: Board, styles: Mapping[str, Style] | None = None, *, focus: str = ""
) -> str:
    """Mean test accuracy against batch size, one line per variant, bands for the intervals.

    Args:
        board: what to draw; failures become crosses at the foot of the chart.
        styles: one style per variant, so that charts of one site agree.
        focus: a method to show in colour, with the reference; the others step back.

    Returns:
        SVG text.
    """
    return _svg(_panel(board, styles or assign(v.name for v in board.variants), focus))


def picture(boards: Sequence[Board], title: str, caption: str) -> str:
    """Several boards side by side as one SVG with a title and a white ground, for a document."""
    styles = assign(v.name for board in boards for v in board.variants)
    panels = alt.hconcat(*(_panel(b, styles, "", heading=True) for b in boards), spacing=10)
    return _svg(
        panels.properties(
            background="white",
            padding=18,
            title=alt.TitleParams(
                title, subtitle=caption.split("\n"), fontSize=17, subtitleFontSize=12, offset=16,
                anchor="start", color=INK, subtitleColor=FAINT, subtitlePadding=5,
            ),
        )
    )  # fmt: skip


def description(board: Board) -> str:
    """What the chart shows, in words: its text alternative."""
    first = board.batch_sizes[0]
    parts = [
        f"{v.name} {v.entries[first].interval.scaled(100).mean:.1f}%"  # type: ignore[union-attr]
        for v in board.variants
        if first in v.entries and v.entries[first].interval is not None
    ]
    return (
        f"Line chart of mean test accuracy against batch size for {board.model} on "
        f"{board.dataset}, with 95% intervals. At batch size {first}: {', '.join(parts)}. "
        "The table below has every value."
    )


def _panel(
    board: Board, styles: Mapping[str, Style], focus: str, *, heading: bool = False
) -> alt.LayerChart:
    drawn = _Drawing(board, layout.scale_of(board), _emphasis(board, styles, focus))
    title = alt.TitleParams(board.model, fontSize=13, anchor="start", color=INK, offset=8)
    return alt.LayerChart(
        layer=drawn.layers(),
        width=layout.WIDTH + LABEL_WIDTH,
        height=layout.HEIGHT,
        title=title if heading else alt.Undefined,
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
    """The layers of one panel, back to front."""

    board: Board
    scale: layout.ErrorScale
    styles: Mapping[str, Style]

    def layers(self) -> list[alt.Chart]:
        points = layout.points(self.board, self.scale)
        labels, failures = layout.labels(self.board, self.scale), layout.failures(self.board)
        x, y, colour = self._x(), self._y("error"), self._colour()
        bands = _chart(points).mark_area(opacity=0.13)
        lines = _chart(points).mark_line(strokeWidth=2)
        markers = _chart(points).mark_point(filled=True, size=46, opacity=1)
        crosses = _chart(failures).mark_text(text="✕", fontSize=12, fontWeight="bold")
        leaders = _chart(labels).mark_rule(strokeWidth=1, opacity=0.55)
        names = _chart(labels).mark_text(align="left", fontSize=11.5, dx=34, baseline="middle")
        where = {"x": _pixels("x", alt.X), "color": colour}
        return [
            bands.encode(x=x, y=self._y("low"), y2="high:Q", color=colour),
            leaders.encode(
                x=_pixels("start", alt.X), x2="end:Q", y=_pixels("from", alt.Y), y2="to:Q",
                color=colour,
            ),
            lines.encode(x=x, y=y, color=colour, strokeDash=self._by("dash", alt.StrokeDash)),
            markers.encode(x=x, y=y, color=colour, shape=self._by("marker", alt.Shape)),
            crosses.encode(y=_pixels("pixel", alt.Y), **where),
            names.encode(y=_pixels("to", alt.Y), text="name:N", **where),
        ]  # fmt: skip

    def _x(self) -> alt.X:
        domain = list(layout.batch_domain(self.board))
        axis = alt.Axis(values=list(self.board.batch_sizes), format="d", grid=False)
        scale = alt.Scale(type="log", base=2, domain=domain, nice=False, range=[0, layout.WIDTH])
        return alt.X("batch:Q", title="batch size", scale=scale, axis=axis)

    def _y(self, field: str) -> alt.Y:
        ticks = [t for t in ERROR_TICKS if self.scale.best <= t <= self.scale.worst]
        domain = [self.scale.best, self.scale.worst]
        scale = alt.Scale(type="log", domain=domain, nice=False, range=[0, layout.HEIGHT])
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


def _svg(chart: alt.LayerChart | alt.HConcatChart) -> str:
    spec = (
        chart.configure(font=FONT)
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
        .to_dict(context={"pre_transform": False})
    )
    return str(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
