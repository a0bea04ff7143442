"""Records of a method that fell back from its kernels: listed and counted, on no board."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsed_page import Page
from synthetic_records import Entries, examination, record, store
from typer.testing import CliRunner

from normbench.cells import Record
from normbench.cli import app
from normbench.leaderboard import catalogue, site
from normbench.leaderboard.boards import Board
from normbench.leaderboard.capabilities import Matrix, best, matrices
from normbench.leaderboard.publish import SiteError
from normbench.store import Store

BoardsOf = Callable[..., list[Board]]
WHY = "no CUDA device: the kernels <need> one"
GROUP: dict[str, Any] = {"method": "group_norm", "variant": "group_norm", "params": {"groups": 32}}
WINNER: dict[str, Any] = {"method": "batch_norm_fast", "variant": "batch_norm_fast", "params": {}}
FIVE: Entries = {"saved_bytes": (5.0, "")}


def seeds(value: float, **fields: Any) -> list[Record]:
    wobble = (0.0, 0.02, 0.01, 0.0, 0.03)
    return [record(seed=i, accuracy=value + value * w, **fields) for i, w in enumerate(wobble)]


def test_a_record_that_would_win_is_on_no_board(boards_of: BoardsOf) -> None:
    others = [*seeds(0.5), *seeds(0.8, **GROUP)]
    ranked = boards_of(*others)
    assert boards_of(*others, *seeds(0.99, fallback=WHY, **WINNER)) == ranked
    group = {v.name: v for v in ranked[0].variants}["group_norm"].entries[2]
    assert str(group.rank) == "1"


def test_without_the_fallback_it_does_win(boards_of: BoardsOf) -> None:
    [board] = boards_of(*seeds(0.5), *seeds(0.8, **GROUP), *seeds(0.99, **WINNER))
    winner = {v.name: v for v in board.variants}["batch_norm_fast"].entries[2]
    assert str(winner.rank) == "1"


@pytest.mark.parametrize("status", ["ok", "error", "oom", "unsupported"])
def test_a_later_eager_record_replaces_no_measurement_of_the_kernels(
    boards_of: BoardsOf, status: str
) -> None:
    kernels = record(accuracy=0.7, **WINNER)
    eager = record(
        accuracy=0.9, status=status, fallback=WHY, started_at="2026-02-01T00:00:00Z",
        data_fingerprint="changed", **WINNER,
    )  # fmt: skip
    [board] = boards_of(kernels, eager)
    assert [dict(v.entries[2].values) for v in board.variants] == [{0: 0.7}]
    assert board.failures == []


@pytest.fixture
def pages(tmp_path: Path, catalogue_file: Path) -> Path:
    """A site of one board, three eager accuracy records and two examinations."""
    eager = [record(seed=seed, fallback=WHY, **WINNER) for seed in range(3)]
    examined = [examination(FIVE, method="batch_norm_fast", fallback=WHY), examination(FIVE)]
    results = store(tmp_path / "results", [record(), *eager, *examined])
    built = site.build([results], tmp_path / "out", catalogue=catalogue_file)
    assert (built.boards, built.records, built.eager) == (1, 6, 3)
    return tmp_path / "out"


def told(path: Path) -> str:
    return " ".join(Page(path).text.split())


def test_the_boards_page_tells_how_many_are_left_out_and_why(pages: Path) -> None:
    text = told(pages / "index.html")
    assert f"3 accuracy records of batch_norm_fast : {WHY}" in text.replace("fast:", "fast :")
    page = (pages / "index.html").read_text(encoding="utf-8")
    assert "batch_norm_fast.html" not in page  # no row of a table
    assert "<need>" not in page


def test_the_methods_page_does_too(pages: Path) -> None:
    text = told(pages / "methods/batch_norm_fast.html")
    assert "On no board, as the eager path ran in place of the kernels: 3 accuracy records" in text
    assert "No accuracy record" not in text
    assert "On no board" not in told(pages / "methods/batch_norm.html")


def test_they_are_listed_with_their_mark(pages: Path) -> None:
    assert told(pages / "records.html").count(f"eager: {WHY}") == 4


def test_examinations_are_shown_with_a_mark_and_a_legend(pages: Path) -> None:
    page = (pages / "capabilities.html").read_text(encoding="utf-8")
    marks = re.findall(r'<span class="older" title="([^"]*)">eager</span>', page)
    assert marks == [WHY.replace("<", "&lt;").replace(">", "&gt;")]
    assert "<dt>eager</dt>" in page
    assert f"on its eager path ({WHY})" in told(pages / "methods/batch_norm_fast.html")
    assert "eager path" not in told(pages / "methods/group_norm.html")


def test_eager_records_alone_make_no_board_and_it_is_said(
    tmp_path: Path, catalogue_file: Path
) -> None:
    results = store(tmp_path / "results", [record(fallback=WHY, **WINNER)])
    site.build([results], tmp_path / "out", catalogue=catalogue_file)
    text = told(tmp_path / "out/index.html")
    assert "No record is of task" not in text
    assert "1 accuracy record of batch_norm_fast" in text
    with pytest.raises(SiteError, match="suite 'invented' has no accuracy board"):
        site.picture([results], "invented")


def test_building_the_site_prints_how_many_are_on_no_board(tmp_path: Path) -> None:
    for name, reason, said in (("a", WHY, True), ("b", "", False)):
        results = store(tmp_path / name, [record(), record(fallback=reason, **WINNER)])
        out = ("--results", str(results), "--out", str(tmp_path / "out"))
        text = CliRunner().invoke(app, ["site", "build", *out], catch_exceptions=False).stdout
        assert ("On no board, as measured on an eager path: 1 record" in text) is said


def tables(tmp_path: Path, catalogue_file: Path, *records: Record) -> tuple[Matrix, ...]:
    frame = Store(store(tmp_path / "m", records)).read()
    probes, known = catalogue.load_probes(catalogue_file), catalogue.load(catalogue_file)
    return matrices(frame, probes, known)


def test_an_examination_of_the_kernels_counts_before_a_fuller_and_later_one_of_the_eager_path(
    tmp_path: Path, catalogue_file: Path
) -> None:
    kernels = examination(FIVE, fast=True, hardware_class="cuda: invented")
    eager = examination(FIVE, day=2, fallback=WHY)
    made = tables(tmp_path, catalogue_file, kernels, eager)
    assert {m.hardware_class: m.rows[0].fallback for m in made} == {
        "cuda: invented": "", "cpu-invented": WHY,
    }  # fmt: skip
    assert best(row for m in made for row in m.rows)["group_norm"].fallback == ""
