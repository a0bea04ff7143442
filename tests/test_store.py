"""Spool and parts as one frame: nothing lost, nothing twice, damage named."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from example_records import make_record
from test_spool import store_row

from normbench import spool
from normbench.cells import SCHEMA_VERSION, Record
from normbench.store import SCHEMA, Store, StoreError, latest, wide

TESTS = Path(__file__).parent


def filled(folder: Path, *records: Record) -> Store:
    store = Store(folder)
    for record in records:
        store.append(record)
    return store


def some(count: int) -> list[Record]:
    return [make_record(seed=seed) for seed in range(count)]


def seeds(store: Store) -> list[int]:
    return sorted(record.cell.seed for record in store.records())


def write_part(folder: Path, frame: pl.DataFrame) -> Path:
    """A part as some version of normbench might have written it."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    draft = folder / "draft.parquet"
    frame.write_parquet(draft)
    name = hashlib.sha256(draft.read_bytes()).hexdigest()[:16]
    return draft.rename(folder / "parts" / f"{name}.parquet")


def test_an_empty_store_has_an_empty_frame_of_the_schema(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").read().schema == SCHEMA
    assert Store(tmp_path / "none").read().is_empty()


@pytest.mark.parametrize("compacted", [False, True])
def test_records_come_back_as_they_were(tmp_path: Path, compacted: bool) -> None:
    written = [make_record(seed=0), make_record(None, status="oom", reason="too big", seed=1)]
    store = filled(tmp_path, *written)
    if compacted:
        store.compact()
    assert sorted(store.records(), key=lambda record: record.cell.seed) == written


def test_the_frame_has_a_row_with_the_cells_fields(tmp_path: Path) -> None:
    row = filled(tmp_path, make_record(0.75, batch_size=4, seed=3)).read().row(0, named=True)
    assert (row["method"], row["batch_size"], row["seed"]) == ("batch_norm", 4, 3)
    assert row["params"] == '{"eps":1e-05}'
    assert {"name": "test_accuracy", "value": 0.75} in row["metrics"]


def test_an_undefined_metric_is_null_in_the_frame_and_nan_in_the_record(tmp_path: Path) -> None:
    store = filled(tmp_path, make_record(math.nan))
    assert wide(store.read())["test_accuracy"].to_list() == [None]
    assert math.isnan(store.records()[0].metrics["test_accuracy"])


def test_of_records_with_one_id_the_latest_counts(tmp_path: Path) -> None:
    old = make_record(None, status="error", reason="a fault")
    new = make_record(started_at="2026-01-02T00:00:00+00:00")
    assert old.record_id == new.record_id
    assert filled(tmp_path, new, old).records() == [new]


def test_finished_cells_are_those_of_the_same_hardware(tmp_path: Path) -> None:
    here, there = make_record(seed=0), make_record(seed=1, hardware_class="cuda: other")
    assert filled(tmp_path, here, there).finished("cpu-1-thread") == {here.cell_id: "ok"}


def test_a_later_failure_does_not_undo_a_measurement(tmp_path: Path) -> None:
    measured = make_record()
    failed = dataclasses.replace(
        measured, record_id="0" * 16, status="error", started_at="2027-01-01T00:00:00+00:00"
    )
    store = filled(tmp_path, measured, failed)
    assert store.finished("cpu-1-thread") == {measured.cell_id: "ok"}
    assert latest(store.read())["status"].to_list() == ["ok"]


def test_of_records_with_one_id_a_measurement_beats_a_later_failure(tmp_path: Path) -> None:
    measured = make_record(0.9, started_at="2026-01-01T00:00:00+00:00")
    failed = make_record(None, status="error", started_at="2026-02-01T00:00:00+00:00")
    assert measured.record_id == failed.record_id
    filled(tmp_path, measured).compact()
    assert filled(tmp_path, failed).records() == [measured]


def test_compaction_moves_the_spool_into_one_part(tmp_path: Path) -> None:
    store = filled(tmp_path, *some(5))
    part = store.compact()
    assert store.paths() == [part]
    assert seeds(store) == [0, 1, 2, 3, 4]


def test_compacting_nothing_writes_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path).compact() is None
    assert Store(tmp_path).paths() == []


def test_equal_records_give_the_same_part(tmp_path: Path) -> None:
    one = filled(tmp_path / "a", *some(3)).compact()
    two = filled(tmp_path / "b", *reversed(some(3))).compact()
    assert one is not None
    assert two is not None
    assert (one.name, one.read_bytes()) == (two.name, two.read_bytes())


def test_a_crash_between_writing_the_part_and_deleting_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(paths: Any) -> None:
        raise KeyboardInterrupt

    store = filled(tmp_path, *some(3))
    with monkeypatch.context() as patch:
        patch.setattr(spool, "delete", crash)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
    assert len(store.paths()) == 4
    assert seeds(store) == [0, 1, 2]
    store.compact()
    assert len(store.paths()) == 1
    assert seeds(store) == [0, 1, 2]


def test_a_full_disk_during_compaction_leaves_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = filled(tmp_path, *some(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            store.compact()
    assert list((tmp_path / "parts").iterdir()) == []
    assert seeds(store) == [0, 1]


def test_writers_and_compactors_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    code = """
import sys
from example_records import make_record
from normbench.store import Store
store, first = Store(sys.argv[1]), int(sys.argv[2])
for seed in range(first, first + 20):
    store.append(make_record(seed=seed))
    if seed % 5 == 4:
        store.compact()
        seen = {record.cell.seed for record in store.records()}
        assert seen >= set(range(first, seed + 1)), sorted(seen)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(first)], cwd=TESTS, stderr=subprocess.PIPE, text=True)
        for first in (0, 20, 40)
    ]
    for process in processes:
        assert process.communicate()[1] == ""
    store = Store(tmp_path)
    assert seeds(store) == list(range(60))
    assert store.problems == []


def test_a_damaged_part_is_named_kept_and_costs_only_itself(tmp_path: Path) -> None:
    store = filled(tmp_path, make_record(seed=0))
    part = store.compact()
    assert part is not None
    store.append(make_record(seed=1))
    store.compact()
    damaged = part.read_bytes()[:-100]
    part.write_bytes(damaged)
    assert seeds(store) == [1]
    assert len(store.problems) == 1
    assert part.name in store.problems[0]
    assert part.read_bytes() == damaged


def test_a_damaged_record_file_survives_compaction(tmp_path: Path) -> None:
    store = filled(tmp_path, make_record(seed=0))
    bad = store.append(make_record(seed=1))
    bad.write_text("{")
    store.compact()
    assert bad.read_text() == "{"
    assert seeds(store) == [0]
    assert bad.name in store.problems[0]


def test_a_value_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path, make_record(seed=0))
    row = {**make_record(seed=1).to_json(), "wall_seconds": "soon"}
    path = store_row(store.spool_folder, row)
    assert seeds(store) == [0]
    assert path.name in store.problems[0]


def test_a_foreign_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_part(tmp_path, pl.DataFrame({"x": [1]}))
    store = Store(tmp_path)
    assert store.read().is_empty()
    assert path.name in store.problems[0]


def test_a_part_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    frame = filled(tmp_path / "new", make_record()).read()
    path = write_part(
        tmp_path, frame.with_columns(pl.lit(SCHEMA_VERSION + 1, pl.Int64).alias("schema_version"))
    )
    with pytest.raises(StoreError, match=f"{path.name}.*newer normbench"):
        Store(tmp_path).read()


def test_an_older_part_is_upgraded_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version made up: `wall_seconds` was called `wall`, and there was no submitter."""

    def upgrade(row: spool.Row) -> spool.Row:
        wall = row.pop("wall")
        return {**row, "wall_seconds": wall, "submitter": "someone"}

    monkeypatch.setitem(spool.UPGRADERS, SCHEMA_VERSION - 1, upgrade)
    frame = filled(tmp_path / "now", make_record()).read()
    old = frame.rename({"wall_seconds": "wall"}).drop("submitter")
    part = write_part(
        tmp_path, old.with_columns(pl.lit(SCHEMA_VERSION - 1, pl.Int64).alias("schema_version"))
    )
    before = part.read_bytes()
    assert Store(tmp_path).records() == [make_record()]
    assert part.read_bytes() == before


@pytest.mark.parametrize("row_by_row", [False, True])
def test_a_part_of_version_2_is_read_without_a_fallback_and_left_alone(
    tmp_path: Path, row_by_row: bool
) -> None:
    frame = filled(tmp_path / "now", *some(3)).read()
    old = frame.drop("fallback").with_columns(pl.lit(2, pl.Int64).alias("schema_version"))
    # In an unusual order the columns are not known at a glance: each row is upgraded by itself.
    part = write_part(tmp_path, old.select(sorted(old.columns)) if row_by_row else old)
    before = part.read_bytes()
    assert Store(tmp_path).read().sort("seed").equals(frame.sort("seed"))
    assert part.read_bytes() == before


def test_the_frame_says_why_a_method_fell_back(tmp_path: Path) -> None:
    store = filled(tmp_path, make_record(fallback="no CUDA device"))
    assert store.read()["fallback"].to_list() == ["no CUDA device"]
    store.compact()
    assert store.records() == [make_record(fallback="no CUDA device")]


def test_wide_has_a_column_for_every_metric_of_any_record(tmp_path: Path) -> None:
    store = filled(tmp_path, make_record(0.5, seed=0), make_record(None, status="oom", seed=1))
    frame = wide(store.read()).sort("seed")
    assert frame["test_accuracy"].to_list() == [0.5, None]
    assert "metrics" not in frame.columns


def test_wide_keeps_a_column_that_a_metric_is_named_after(tmp_path: Path) -> None:
    record = dataclasses.replace(make_record(), metrics={"wall_seconds": 1.0})
    frame = wide(filled(tmp_path, record).read())
    assert frame["wall_seconds"].to_list() == [6.5]
    assert frame["metric_wall_seconds"].to_list() == [1.0]


def test_reading_changes_nothing_on_disk(tmp_path: Path) -> None:
    store = filled(tmp_path / "a", *some(3))
    store.compact()
    store.append(make_record(seed=9))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    store.read()
    for path in store.paths():
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
