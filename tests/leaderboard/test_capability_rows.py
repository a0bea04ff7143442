"""The capability row of a method's page, from invented records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from synthetic_records import record, store

from normbench.cells import Record
from normbench.leaderboard.capabilities import examined
from normbench.leaderboard.catalogue import Probe
from normbench.store import Store

PROBES = (
    Probe("batch_independent", "Batch", "batch-independent", "", "Other samples do not count."),
    Probe("saved_bytes", "Cost", "saved", "bytes", "Kept for backward."),
)


def examination(*, fast: bool = False, day: int = 1, **values: Any) -> Record:
    entries = {name: {"value": v, "reason": why} for name, (v, why) in values.items()}
    fields: dict[str, Any] = {"method": "group_norm", "variant": "group_norm"}
    made = record(
        task="capability", config={"fast": fast}, started_at=f"2026-01-{day:02}T00:00:00Z", **fields
    )
    return dataclasses.replace(made, slots={"probes": entries})


def rows(tmp_path: Path, *records: Record) -> dict[str, Any]:
    return examined(Store(store(tmp_path, records)).read(), PROBES)


def test_answers_are_grouped_and_shown_with_their_reasons(tmp_path: Path) -> None:
    found = rows(tmp_path, examination(
        batch_independent=(False, "statistics of the batch"), saved_bytes=(4.0, ""),
        batch_independent_without_activation=(True, ""), unknown_probe=(1.0, ""),
    ))["group_norm"]  # fmt: skip
    assert [(a.heading, a.shown, a.reason) for a in found.answers["Batch"]] == [
        ("batch-independent", "no", "statistics of the batch"),
        ("batch-independent, without activation", "yes", ""),
    ]
    assert [a.shown for a in found.answers["Cost"]] == ["4.00 bytes"]


def test_a_full_examination_counts_before_a_later_fast_one(tmp_path: Path) -> None:
    full = examination(day=1, saved_bytes=(4.0, ""))
    fast = examination(day=2, fast=True, saved_bytes=(None, "skipped: takes seconds"))
    [answer] = rows(tmp_path, full, fast)["group_norm"].answers["Cost"]
    assert answer.shown == "4.00 bytes"


def test_an_answer_without_a_value_is_its_word(tmp_path: Path) -> None:
    found = rows(tmp_path, examination(saved_bytes=(None, "crashed: ValueError: no")))
    assert found["group_norm"].answers["Cost"][0].shown == "crashed"


def test_variants_and_other_tasks_have_no_row(tmp_path: Path) -> None:
    variant = examination(saved_bytes=(4.0, ""))
    cell = dataclasses.replace(variant.cell, variant="group_norm(groups=8)")
    assert rows(tmp_path, dataclasses.replace(variant, cell=cell), record()) == {}
