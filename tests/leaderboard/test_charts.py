from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_records import METHODS, record

from normbench.leaderboard import chart_layout, charts, palette
from normbench.leaderboard.boards import Board

WHITE, DARK = "#ffffff", "#14181d"


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", [WHITE, DARK])
@pytest.mark.parametrize("colour", palette.COLOURS)
def test_colours_can_be_seen_on_light_and_dark_pages(colour: str, ground: str) -> None:
    assert contrast(colour, ground) >= 3


def test_no_two_of_many_variants_look_alike() -> None:
    styles = palette.assign(f"method_{i}" for i in range(200))
    assert len(set(styles.values())) == 200


def test_styles_of_neighbours_differ_in_colour_dash_and_marker() -> None:
    a, b = palette.assign(["a", "b"]).values()
    assert (a.colour != b.colour, a.dash != b.dash, a.marker != b.marker) == (True, True, True)


def test_chart_names_every_variant_and_batch_size(study: list[Board]) -> None:
    texts = {e.text for e in ET.fromstring(charts.accuracy_chart(study[0])).iter() if e.text}
    assert {*METHODS, "instance_norm: no result", *map(str, study[0].batch_sizes)} <= texts


def test_chart_needs_nothing_from_elsewhere(study: list[Board]) -> None:
    svg = charts.accuracy_chart(study[0])
    outside = svg.replace("http://www.w3.org/", "")
    assert [word for word in ("http", "<image", "@import", "<script") if word in outside] == []


def test_failures_are_marked(study: list[Board]) -> None:
    axes = chart_layout.axes_of(study[:1], 400)
    marked = [row["variant"] for row in chart_layout.failures(study[0], axes)]
    assert marked == ["instance_norm", "batch_renorm(schedule=fraction)"]


def test_labels_do_not_overlap(study: list[Board]) -> None:
    axes = chart_layout.axes_of(study, 400)
    heights = [label["to"] for label in chart_layout.labels(study[0], axes)]
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(gaps) >= chart_layout.LABEL_GAP - 1e-9


def test_bands_are_the_intervals_cut_at_the_axes(study: list[Board]) -> None:
    axes = chart_layout.axes_of(study[:1], 400)
    for row in chart_layout.points(study[0], axes):
        assert axes.best <= row["high"] <= row["error"] <= row["low"] <= axes.worst


def test_a_board_of_one_point_can_be_drawn(boards_of: Callable[..., list[Board]]) -> None:
    [board] = boards_of(record(accuracy=1.0))
    assert ET.fromstring(charts.accuracy_chart(board)).tag.endswith("svg")


def test_a_board_of_failures_alone_can_be_drawn(boards_of: Callable[..., list[Board]]) -> None:
    [board] = boards_of(record(accuracy=None, status="oom"))
    assert "no result" in charts.accuracy_chart(board)


def test_picture_holds_all_boards_and_their_title(study: list[Board]) -> None:
    texts = {e.text for e in ET.fromstring(charts.picture(study, "A title")).iter() if e.text}
    titles = {f"{board.model} on {board.dataset}" for board in study}
    assert {"A title", *titles} <= texts


def test_description_says_the_numbers(study: list[Board]) -> None:
    value = next(v for v in study[0].variants if v.name == study[0].reference).entries[2].interval
    assert value is not None
    assert f"{study[0].reference} {100 * value.mean:.1f}%" in charts.description(study[0])


def test_page_style_covers_the_charts_neutral_colours(root: Path) -> None:
    css = (root / "leaderboard/static/site.css").read_text(encoding="utf-8")
    assert [c for c in (charts.INK, charts.FAINT, charts.GRID) if f'"{c}"' not in css] == []
