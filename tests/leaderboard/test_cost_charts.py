from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from synthetic_costs import everything, throughput

from normbench.cells import Record
from normbench.leaderboard import catalogue, charts, tradeoff_charts
from normbench.leaderboard.boards import boards
from normbench.leaderboard.cost_charts import TICKS, Span, cost_chart, description, span_of
from normbench.leaderboard.costs import CostBoard, Figure, cost_boards
from normbench.leaderboard.palette import COLOURS
from normbench.leaderboard.tradeoff import Tradeoff, tradeoffs
from normbench.store import Store

RATIO = [("", "ratio")]


def read(
    folder: Path, records: list[Record], known: Path
) -> tuple[list[CostBoard], list[Tradeoff]]:
    frame, methods = Store(synthetic.store(folder, records)).read(), catalogue.load(known)
    costs = cost_boards(frame, methods)
    return costs, tradeoffs(boards(frame, methods), costs)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, catalogue_file: Path
) -> tuple[list[CostBoard], list[Tradeoff]]:
    return read(tmp_path_factory.mktemp("charts"), everything(), catalogue_file)


def texts(svg: str) -> list[str]:
    return [e.text for e in ET.fromstring(svg).iter() if e.text]


def test_a_chart_names_every_variant_batch_size_and_failure(
    made: tuple[list[CostBoard], list[Tradeoff]],
) -> None:
    board = next(board for board in made[0] if board.failures)
    panels = [("launched", "ratio"), ("graph", "graph_ratio")]
    wanted = {v.name for v in board.variants} | {"2", "32", "✕ oom", "launched", "graph"}
    assert wanted <= set(texts(cost_chart(board, panels)))


def test_charts_need_nothing_from_elsewhere(
    made: tuple[list[CostBoard], list[Tradeoff]],
) -> None:
    drawn = cost_chart(made[0][0], RATIO) + tradeoff_charts.tradeoff_chart(made[1][0])
    outside = drawn.replace("http://www.w3.org/", "")
    assert [word for word in ("http", "<image", "@import", "<script") if word in outside] == []


@pytest.mark.parametrize(("half", "filled"), [(0.02, True), (0.2, False), (None, False)])
def test_a_dot_is_filled_where_the_ratio_is_apart_from_1(
    tmp_path: Path, catalogue_file: Path, half: float | None, filled: bool
) -> None:
    [board], _ = read(tmp_path, [throughput(1.1, half)], catalogue_file)
    assert (f'fill="{COLOURS[0]}"' in cost_chart(board, RATIO)) is filled


def test_a_board_of_failures_alone_can_be_drawn(tmp_path: Path, catalogue_file: Path) -> None:
    [board], _ = read(tmp_path, [throughput(status="oom")], catalogue_file)
    assert "✕ oom" in texts(cost_chart(board, RATIO))
    assert "no result" in description(board, "ratio", "the time")


def test_a_description_tells_the_ends(made: tuple[list[CostBoard], list[Tradeoff]]) -> None:
    board = made[0][0]
    ratios = {v.name: v.entries[32,].ratio() for v in board.variants}
    lowest = min((f.value, name) for name, f in ratios.items() if f is not None)
    assert f"{lowest[1]} 1.03" in description(board, "ratio", "the time")


def test_an_axis_holds_1_and_every_ratio_but_no_interval_far_out() -> None:
    figures = [Figure(2.0, -5.0, 9.0, 3, "seeds"), Figure(4.0, 3.9, 4.1, 1, "rounds")]
    span = span_of(figures)
    assert span.low == pytest.approx(1 / 1.06)
    assert span.high == pytest.approx(4.1 * 1.06)
    assert (span.clamp(-5.0), span.clamp(9.0)) == (span.low, span.high)


@given(st.floats(0.01, 1), st.floats(1.05, 1000))
def test_labels_of_an_axis_stand_apart(low: float, high: float) -> None:
    ticks = Span(low, high).ticks(TICKS, 400)
    places = [400 * math.log(tick / low) / math.log(high / low) for tick in ticks]
    assert 1 in ticks
    assert all(b - a >= 34 - 1e-6 for a, b in itertools.pairwise(places))


def test_numbers_of_points_that_coincide_stand_apart() -> None:
    found = tradeoff_charts.numbers([(100.0, 100.0)] * 5)
    gaps = [math.dist(a, b) for a, b in itertools.combinations(found, 2)]
    assert min(gaps) >= 10


def test_a_tradeoff_numbers_its_points_and_names_them(
    made: tuple[list[CostBoard], list[Tradeoff]],
) -> None:
    tradeoff = made[1][0]
    found = set(texts(tradeoff_charts.tradeoff_chart(tradeoff)))
    assert {f"{i}  {p.variant}" for i, p in enumerate(tradeoff.points, 1)} <= found
    assert {"on the front", "not separated from it", "behind it"} <= found


def test_a_tradeoff_of_perfect_accuracies_can_be_drawn(
    tmp_path: Path, catalogue_file: Path
) -> None:
    group = {"method": "group_norm", "variant": "group_norm", "params": {"groups": 32}}
    records = [synthetic.record(accuracy=1.0), synthetic.record(accuracy=1.0, **group)]
    at = {"batch_size": 2, "model": "nb_resnet10_1x1"}
    records += [throughput(1.0, **at), throughput(1.0, **at, **group)]
    _, [tradeoff] = read(tmp_path, records, catalogue_file)
    assert [point.place for point in tradeoff.points] == ["front", "front"]
    assert "NaN" not in tradeoff_charts.tradeoff_chart(tradeoff)


def test_the_page_knows_the_charts_neutral_colours(
    made: tuple[list[CostBoard], list[Tradeoff]],
) -> None:
    drawn = cost_chart(made[0][0], RATIO) + tradeoff_charts.tradeoff_chart(made[1][0])
    dark = {charts.INK, charts.FAINT, charts.GRID}
    assert not [c for c in ('"black"', '"#000"', '"#000000"', '"#888"', '"#ddd"') if c in drawn]
    assert all(colour in drawn for colour in dark)
