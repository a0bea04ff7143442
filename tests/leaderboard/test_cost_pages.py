"""Pages of speed, memory and accuracy against cost. Links, ids and captions: test_pages.py."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from parsed_page import Page
from synthetic_costs import CUDA, LAYER, THROUGHPUT, layer, memory, throughput
from typer.testing import CliRunner

from normbench.cells import Record
from normbench.cli import app
from normbench.leaderboard import site

NET = "nb_resnet10_1x1"
GROUP: dict[str, Any] = {"method": "group_norm", "variant": "group_norm", "params": {"groups": 32}}
MENU = {"Speed", "Memory", "Accuracy against cost"}


def told(path: Path) -> str:
    return " ".join(Page(path).text.split())


def cells(path: Path) -> str:
    """The text with a space for every tag: cells that stand side by side stay apart."""
    return " ".join(re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8")).split())


def row(path: Path, variant: str) -> list[str]:
    """The texts of a variant's row in the first table that has it."""
    text = path.read_text(encoding="utf-8")
    for found in re.findall(r"<tr[^>]*><th scope=\"row\">.*?</tr>", text, re.DOTALL):
        parts = re.findall(r"<t[hd].*?</t[hd]>", found, re.DOTALL)
        texts = [" ".join(re.sub(r"<[^>]*>", "", part).split()) for part in parts]
        if texts[0].startswith(variant):
            return texts
    raise AssertionError(f"{variant} is in no row")


@pytest.fixture
def made(tmp_path: Path, catalogue_file: Path) -> Any:
    def make(*records: Record) -> Path:
        results = synthetic.store(tmp_path / "results", records)
        site.build([results], tmp_path / "out", catalogue=catalogue_file)
        return tmp_path / "out"

    return make


def menu(folder: Path, page: str = "index.html") -> set[str]:
    head = (folder / page).read_text(encoding="utf-8").partition("</header>")[0]
    return {name for name in MENU if f">{name}</a>" in head}


@pytest.mark.parametrize(
    ("records", "names", "files"),
    [
        ([throughput()], {"Speed"}, {"speed.html"}),
        ([layer()], {"Speed"}, {"speed.html"}),
        ([memory()], {"Memory"}, {"memory.html"}),
        ([throughput(fallback="no CUDA")], {"Speed"}, {"speed.html"}),
        ([synthetic.record()], set(), set()),
    ],
    ids=["throughput", "layer", "memory", "eager", "accuracy"],
)
def test_pages_are_there_where_there_are_records(
    made: Any, records: Iterable[Record], names: set[str], files: set[str]
) -> None:
    folder = made(*records)
    there = {p.name for p in folder.glob("*.html")} & {"speed.html", "memory.html", "tradeoff.html"}
    assert (menu(folder), there) == (names, files)
    assert menu(folder, f"methods/{next(iter(records)).cell.method}.html") == names


def test_with_cost_records_alone_the_index_says_so_and_leads_on(made: Any) -> None:
    folder = made(throughput(), memory(), layer())
    text = told(folder / "index.html")
    assert "No record is of task accuracy, so there is no board of accuracy yet" in text
    assert "What methods cost, on pages of their own: Speed, Memory." in text
    assert "values per channel" not in text.lower()
    assert "No accuracy record of this method yet." in told(folder / "methods/batch_norm.html")


def test_a_row_has_ratio_interval_and_absolute_medians(made: Any) -> None:
    folder = made(throughput(1.25, 0.05, **GROUP))
    assert row(folder / "speed.html", "group_norm")[1:] == [
        "1.25 [1.20, 1.30]",
        "40.0",
        "800",
        "36.0",
    ]


def test_a_ratio_that_may_be_1_is_not_shown_as_an_order(made: Any) -> None:
    page = made(throughput(1.02, 0.03, **GROUP), throughput(1.5, None)) / "speed.html"
    assert row(page, "group_norm")[1] == "≈ 1 1.02 [0.990, 1.05]"
    assert row(page, "batch_norm")[1] == "1.50 no interval"
    assert "<strong>1." not in page.read_text(encoding="utf-8")
    assert "At batch size 32, 1 of 1 ratios are not told apart from 1." in told(page)


def test_several_seeds_say_how_many(made: Any) -> None:
    page = made(*(throughput(1.4 + i / 1000, seed=i, **GROUP) for i in range(3))) / "speed.html"
    assert row(page, "group_norm")[1].endswith("n = 3")


def test_on_cuda_there_are_graphs_and_energy(made: Any) -> None:
    folder = made(throughput(1.44, hardware_class=CUDA, **GROUP))
    texts = row(folder / "speed.html", "group_norm")
    assert texts[-3:] == ["1.20 [1.18, 1.22]", "23.0", "13.8"]
    assert "replayed as a graph" in told(folder / "speed.html")


def test_what_does_not_fold_and_what_throttled_is_told(made: Any) -> None:
    folded = throughput(1.2, config={**THROUGHPUT, "mode": "inference_folded"}, **GROUP)
    hot = throughput(1.2, hardware_class=CUDA)
    folder = made(folded, replace(hot, metrics={**hot.metrics, "throttled": 1.0, "drift": 1.3}))
    assert row(folder / "speed.html", "group_norm")[-1] == "1"
    assert "throttled drift 1.30" in row(folder / "speed.html", "batch_norm")[1]


def test_the_boards_own_check_is_shown(made: Any) -> None:
    page = made(throughput(1.01, 0.02), throughput(2.0, **GROUP)) / "speed.html"
    assert "should be 1. It is 1.01 [0.990, 1.03] at batch size 32." in told(page)


def test_a_check_that_fails_is_said_and_so_is_a_missing_one(made: Any) -> None:
    page = made(throughput(1.1, 0.02), memory(**GROUP)) / "speed.html"
    assert "1.10 [1.08, 1.12] at batch size 32 (does not hold 1" in told(page)
    assert "This board has no check" in told(page.with_name("memory.html"))


@pytest.mark.parametrize("status", ["oom", "unsupported", "error", "timeout"])
def test_failures_stand_in_the_table_and_below_with_their_reason(made: Any, status: str) -> None:
    folder = made(throughput(), throughput(status=status, reason="<why> so", **GROUP))
    assert row(folder / "speed.html", "group_norm")[1] == status
    assert f"group_norm, batch size 32: {status} (<why> so)." in told(folder / "speed.html")
    text = (folder / "speed.html").read_text(encoding="utf-8")
    assert ("<why>" in text, f"✕ {status}" in text) == (False, True)


def test_hardware_classes_have_sections_of_their_own(built: Path) -> None:
    text = told(built / "speed.html")
    assert "On cpu-invented" in text
    assert f"On {CUDA}" in text
    assert "One layer alone, on cpu-invented" in text


def test_layers_alone_are_a_table_of_inputs(made: Any) -> None:
    tall = {"config": {**LAYER, "height": 8}}
    page = made(layer(1.3, **GROUP), layer(1.5, **GROUP, **tall)) / "speed.html"
    assert row(page, "group_norm")[1:] == ["1.50 [1.45, 1.55]", "4800", "1.30 [1.25, 1.35]", "4160"]
    assert "32×64×8×32" in told(page)
    assert "<svg" not in page.read_text(encoding="utf-8")


def test_a_layer_shows_its_communication_and_its_graph(made: Any) -> None:
    plain = layer(1.3, **GROUP)
    more = {"communication_share": 0.25, "graph_ratio": 1.25, "graph_seconds": 2e-6}
    page = made(replace(plain, metrics={**plain.metrics, **more})) / "speed.html"
    assert row(page, "group_norm")[3:] == ["25.0", "1.25 no interval", "2.00"]


def test_a_board_of_an_earlier_protocol_says_so_and_stands_behind(made: Any) -> None:
    page = made(memory(1.25, **GROUP), memory(1.5, **GROUP, protocol=2)) / "memory.html"
    text = told(page)
    assert row(page, "group_norm")[1] == "1.50"
    assert text.count("Measured by an earlier protocol") == 1
    assert text.index("protocol 2") < text.index("Measured by an earlier protocol")


def test_memory_has_counts_without_intervals_and_the_largest_batches(made: Any) -> None:
    page = made(memory(1.5, hardware_class=CUDA, **GROUP), memory(1.0)) / "memory.html"
    assert row(page, "batch_norm")[1] == "1.00"
    text = cells(page)
    assert "1 GiB, predicted 1 GiB, run 4 GiB, predicted 4 GiB, run" in text
    room = f"{(2**30 - 9e7) // (2e6 * 1.25):,.0f} {(2**30 - 9e7) // (2e6 * 1.25) - 3:,.0f}"
    assert room in text


def test_eager_records_are_counted_and_not_shown(made: Any) -> None:
    page = made(throughput(1.5), throughput(0.5, fallback="no <CUDA>", **GROUP)) / "speed.html"
    assert "1 throughput record of group_norm: no <CUDA>" in told(page)
    assert "methods/group_norm.html" not in page.read_text(encoding="utf-8")


def test_a_methods_page_has_its_costs_and_no_others(made: Any) -> None:
    folder = made(throughput(1.25, **GROUP), throughput(1.01), memory(1.5, **GROUP))
    text = cells(folder / "methods/group_norm.html").replace("group_ norm", "group_norm")
    assert "group_norm 32 1.25 [1.23, 1.27] 40.0" in text
    assert "1.01" not in text
    assert 'href="../memory.html#costs-' in (folder / "methods/group_norm.html").read_text("utf-8")
    assert "What it costs" not in told(folder / "methods/proxy_norm.html")


def test_records_show_the_figure_of_their_task(made: Any) -> None:
    text = told(
        made(throughput(1.25), memory(1.5), layer(1.75), synthetic.record()) / "records.html"
    )
    assert all(
        figure in text for figure in ("ratio 1.25", "saved ratio 1.50", "ratio 1.75", "accuracy 90")
    )


def test_tradeoff_says_when_models_differ(built: Path) -> None:
    text = told(built / "tradeoff.html")
    wanted = "different models: accuracies of nb_resnet10_1x1, costs of resnet18."
    assert wanted in text
    page = (built / "tradeoff.html").read_text(encoding="utf-8")
    articles = re.findall(r"<article.*?</article>", page, re.DOTALL)
    same = [a for a in articles if "memory: nb_resnet10_1x1, fp32, 64×64 NCHW" in a and "<h3" in a]
    of_1x1 = page.partition("nb_resnet10_4x4 on")[0]
    assert same
    assert all("different models" not in a for a in same if a in of_1x1)


def test_tradeoff_names_its_front_and_lists_every_point(made: Any) -> None:
    folder = made(
        synthetic.record(accuracy=0.5), synthetic.record(accuracy=0.9, **GROUP),
        throughput(1.0, batch_size=2, model=NET), throughput(1.3, batch_size=2, model=NET, **GROUP),
    )  # fmt: skip
    page = folder / "tradeoff.html"
    assert "from the cheapest: batch_norm(eps=1e-05) (50.0%, 1.00), group_norm (90.0%" in told(page)
    assert row(page, "group_norm") == [
        "group_norm", "2", "90.0", "1.30 [1.28, 1.32]", "on the front",
    ]  # fmt: skip
    assert "by the means alone" in told(page)


def test_building_the_site_prints_counts(tmp_path: Path) -> None:
    results = synthetic.store(tmp_path / "a", [synthetic.record(), throughput(), memory()])
    arguments = ["site", "build", "--results", str(results), "--out", str(tmp_path / "out")]
    text = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "Built 1 boards of accuracy, 2 of speed and memory from 3 records." in text


@pytest.mark.parametrize("page", ["speed.html", "memory.html", "tradeoff.html"])
def test_headings_descend_and_tables_have_heads(built: Path, page: str) -> None:
    tags = Page(built / page).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    scopes = {attrs.get("scope") for tag, attrs in tags if tag == "th"}
    assert scopes <= {"col", "colgroup", "row", "rowgroup"}
