"""Rows of the capability matrix, from invented records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from synthetic_records import Entries, examination, record, store

from normbench.cells import Record
from normbench.leaderboard.capabilities import Examined, Matrix, best, matrices
from normbench.leaderboard.catalogue import Method, Probe
from normbench.store import Store

PROBES = (
    Probe("batch_independent", "Batch", "batch-independent", "", "Other samples do not count."),
    Probe("unasked", "Batch", "unasked", "", "No record has it."),
    Probe("saved_bytes", "Cost", "saved", "bytes", "Kept for backward."),
)
CATALOGUE = {"group_norm": dataclasses.replace(Method.unknown("group_norm"), code_hash="c0de")}
FOUR: Entries = {"saved_bytes": (4.0, "")}
FIVE: Entries = {"saved_bytes": (5.0, "")}
SKIPPED: Entries = {"saved_bytes": (None, "skipped: takes seconds")}


def tables(tmp_path: Path, *records: Record) -> tuple[Matrix, ...]:
    return matrices(Store(store(tmp_path, records)).read(), PROBES, CATALOGUE)


def row(tmp_path: Path, *records: Record) -> Examined:
    [matrix] = tables(tmp_path, *records)
    [found] = matrix.rows
    return found


def test_answers_are_grouped_and_shown_with_their_reasons(tmp_path: Path) -> None:
    found = row(tmp_path, examination({
        "batch_independent": (False, "statistics of the batch"), "saved_bytes": (4.0, ""),
        "batch_independent_without_activation": (True, ""), "unknown_probe": (1.0, ""),
    })).by_theme  # fmt: skip
    assert [(a.heading, a.shown, a.reason) for a in found["Batch"]] == [
        ("batch-independent", "no", "statistics of the batch"),
        ("batch-independent, without activation", "yes", ""),
    ]
    assert [(a.short, a.shown) for a in found["Cost"]] == [("4.00", "4.00 bytes")]


def test_a_full_examination_counts_before_a_later_fast_one(tmp_path: Path) -> None:
    found = row(tmp_path, examination(FOUR, day=1), examination(SKIPPED, day=2, fast=True))
    assert found.answers["saved_bytes"].shown == "4.00 bytes"


def test_present_code_counts_before_a_full_and_later_examination_of_older(tmp_path: Path) -> None:
    present = examination(FOUR, fast=True)
    older = examination(FIVE, day=2, code_hash="01d")
    found = row(tmp_path, present, older)
    assert (found.answers["saved_bytes"].value, found.older) == (4.0, False)
    assert row(tmp_path / "older", older).older


def test_an_answer_without_a_value_is_its_word(tmp_path: Path) -> None:
    found = row(tmp_path, examination({"saved_bytes": (None, "crashed: ValueError: no")}))
    assert found.answers["saved_bytes"].shown == "crashed"


def test_variants_failures_and_other_tasks_have_no_row(tmp_path: Path) -> None:
    variant = examination(FOUR)
    cell = dataclasses.replace(variant.cell, variant="group_norm(groups=8)")
    failed = examination({}, method="none", status="error", reason="no probe could be answered")
    assert tables(tmp_path, dataclasses.replace(variant, cell=cell), failed, record()) == ()


def test_hardware_and_protocols_have_tables_of_their_own(tmp_path: Path) -> None:
    found = tables(
        tmp_path,
        examination(FOUR, hardware_class="a"),
        examination(FOUR, hardware_class="b"),
        examination(FOUR, hardware_class="b", method="none", day=3),
        examination(FIVE, hardware_class="c", protocol=2),
    )
    assert [(m.hardware_class, m.protocol, len(m.rows)) for m in found] == [
        ("c", 2, 1), ("b", 1, 2), ("a", 1, 1),
    ]  # fmt: skip
    assert found[1].dates == ("2026-01-01", "2026-01-03")
    counted = best(row for matrix in found for row in matrix.rows)
    assert counted["group_norm"].hardware_class == "c"


def test_columns_are_the_probes_that_some_method_was_asked(tmp_path: Path) -> None:
    [matrix] = tables(
        tmp_path, examination(FOUR), examination({"batch_independent": (True, "")}, method="none")
    )
    assert {theme: [p.name for p in probes] for theme, probes in matrix.themes.items()} == {
        "Batch": ["batch_independent"], "Cost": ["saved_bytes"],
    }  # fmt: skip
