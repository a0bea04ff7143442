from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic_records as synthetic

from normbench.leaderboard import catalogue, publish, site, sources
from normbench.leaderboard.publish import NoRecordsError, SiteError, replacing

Build = Callable[..., site.Built]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return synthetic.store(tmp_path / "results", [synthetic.record()])


def test_a_foreign_folder_is_left_alone(tmp_path: Path, results: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(SiteError, match="not empty and was not written by normbench"):
        site.build([results], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_site_is_left_alone(tmp_path: Path, results: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SiteError, match="is a file"):
        site.build([results], tmp_path / "out")


def test_an_older_site_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replacing(tmp_path / "out") as folder:
            (folder / text).write_text(text)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [publish.MARKER, "new"]


def test_a_failed_build_leaves_the_older_site_and_no_litter(tmp_path: Path) -> None:
    with replacing(tmp_path / "out") as folder:
        (folder / "index.html").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "out"):
        raise RuntimeError
    assert (tmp_path / "out" / "index.html").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_no_records_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoRecordsError, match=r"no records in .*normbench run"):
        site.build([tmp_path], tmp_path / "out")


def test_the_same_records_give_the_same_bytes(tmp_path: Path, results: Path) -> None:
    for name in ("a", "b"):
        site.build([results], tmp_path / name)
    pages = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    ]
    assert pages[0] == pages[1]


def test_records_of_several_folders_are_joined(tmp_path: Path, results: Path) -> None:
    more = synthetic.store(tmp_path / "more", [synthetic.record(seed=1), synthetic.record()])
    assert sources.read([results, more])[0].height == 2


def test_accepted_records_may_lie_flat(tmp_path: Path, results: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for part in (results / "parts").iterdir():
        (flat / part.name).write_bytes(part.read_bytes())
    assert sources.read([flat])[0].height == 1


def test_a_stray_parquet_file_does_not_hide_the_parts(tmp_path: Path, results: Path) -> None:
    (results / "export.parquet").write_bytes(b"a table of one's own")
    assert sources.read([results])[0].height == 1


def test_of_equal_ids_in_several_folders_a_measurement_beats_a_later_failure(
    tmp_path: Path, results: Path
) -> None:
    failed = dataclasses.replace(
        synthetic.record(), status="error", metrics={}, started_at="2030-01-01T00:00:00+00:00"
    )
    more = synthetic.store(tmp_path / "more", [failed])
    assert sources.read([results, more])[0]["status"].to_list() == ["ok"]


def test_a_damaged_file_is_named_on_the_page(tmp_path: Path, results: Path) -> None:
    (results / "spool").mkdir(exist_ok=True)
    (results / "spool" / "torn-0.json").write_text("{")
    built = site.build([results], tmp_path / "out")
    assert "torn-0.json" in built.problems[0]
    assert "torn-0.json" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_without_records_of_ones_own_the_packages_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMBENCH_RESULTS", str(tmp_path / "empty"))
    assert sources.default_results() == [sources.ACCEPTED]


def test_ones_own_records_come_first(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMBENCH_RESULTS", str(results))
    assert sources.default_results() == [results]


def test_picture_of_an_unknown_suite_lists_those_there_are(results: Path) -> None:
    with pytest.raises(SiteError, match="the records hold: invented"):
        site.picture([results], "smal-batch")


def test_files_that_are_no_suites_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nquestion: Why?\n")
    (tmp_path / "b.yaml").write_text("[: no yaml")
    (tmp_path / "c.yaml").write_text("- a list")
    assert sources.questions(tmp_path) == {"a": "Why?"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not a JSON file"),
        ('{"schema": 9, "methods": []}', "schema is 9, expected 2"),
        ('{"schema": 2, "methods": [{"name": "x"}]}', "lacks 'citation'"),
    ],
)
def test_a_bad_catalogue_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(catalogue.CatalogueError, match=problem):
        catalogue.load(tmp_path / "c.json")


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(catalogue.CatalogueError, match="no such catalogue"):
        catalogue.load(tmp_path / "none.json")
