"""One file per record: whole or absent, whatever happens to the writer or the disk."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from example_records import make_record
from hypothesis import given
from hypothesis import strategies as st

from normbench import spool
from normbench.cells import SCHEMA_VERSION, CellError, Record

TESTS = Path(__file__).parent

WRITE_FOREVER = """
import sys
from example_records import make_record
from normbench import spool
first, last = int(sys.argv[2]), int(sys.argv[3])
for seed in range(first, last):
    spool.write(sys.argv[1], make_record(seed=seed))
    print(seed, flush=True)
"""


def start_writer(folder: Path, first: int, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(folder), str(first), str(last)],
        cwd=TESTS, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def store_row(folder: Path, row: Any) -> Path:
    """A spool file with this content, as if some version of normbench had written it."""
    content = json.dumps(row).encode()
    path = folder / f"row-{hashlib.sha256(content).hexdigest()[:8]}.json"
    folder.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record = make_record()
    spool.write(tmp_path, record)
    assert spool.read(tmp_path) == ([record], [])


def test_writing_twice_leaves_one_file(tmp_path: Path) -> None:
    assert spool.write(tmp_path, make_record()) == spool.write(tmp_path, make_record())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_rerun_of_a_cell_does_not_replace_the_older_file(tmp_path: Path) -> None:
    spool.write(tmp_path, make_record(status="error", accuracy=None))
    spool.write(tmp_path, make_record(started_at="2026-01-02T00:00:00+00:00"))
    assert len(spool.list_files(tmp_path)) == 2


def test_a_folder_that_is_not_there_holds_no_records(tmp_path: Path) -> None:
    assert spool.read(tmp_path / "none") == ([], [])


@pytest.mark.parametrize("damage", [b"", b"{", b'{"half": ', b"\xff\xfe\x00"])
def test_a_damaged_file_is_named_kept_and_costs_only_itself(tmp_path: Path, damage: bytes) -> None:
    good = make_record(seed=0)
    spool.write(tmp_path, good)
    bad = spool.write(tmp_path, make_record(seed=1))
    bad.write_bytes(damage)
    records, problems = spool.read(tmp_path)
    assert records == [good]
    assert len(problems) == 1
    assert bad.name in problems[0]
    assert bad.read_bytes() == damage


def test_a_single_changed_digit_is_noticed(tmp_path: Path) -> None:
    path = spool.write(tmp_path, make_record(accuracy=0.948))
    path.write_text(path.read_text("utf-8").replace("0.948", "0.998"), "utf-8")
    records, problems = spool.read(tmp_path)
    assert records == []
    assert "damaged" in problems[0]


@pytest.mark.parametrize("row", [[], 3, {}, {"schema_version": 1}, {"schema_version": "1"}])
def test_json_that_is_no_record_is_named(tmp_path: Path, row: Any) -> None:
    path = store_row(tmp_path, row)
    assert path.name in spool.read(tmp_path)[1][0]


def test_an_unfinished_write_is_no_record(tmp_path: Path) -> None:
    (tmp_path / ".abc.json.123.tmp").write_text("{")
    assert spool.read(tmp_path) == ([], [])


def test_a_record_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    row = {**make_record().to_json(), "schema_version": SCHEMA_VERSION + 1}
    path = store_row(tmp_path, row)
    with pytest.raises(spool.StoreError, match=f"{path.name}.*newer normbench"):
        spool.read(tmp_path)


def test_an_older_row_is_upgraded_when_read_and_its_file_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename_wall(row: spool.Row) -> spool.Row:
        return {**{k: v for k, v in row.items() if k != "wall"}, "wall_seconds": row["wall"]}

    monkeypatch.setitem(spool.UPGRADERS, SCHEMA_VERSION - 1, rename_wall)
    row = {**make_record().to_json(), "schema_version": SCHEMA_VERSION - 1, "wall": 6.5}
    del row["wall_seconds"]
    path = store_row(tmp_path, row)
    before = path.read_bytes()
    assert spool.read(tmp_path) == ([make_record()], [])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("notes", "fingerprint"),
    [
        (["data: embedded:digits, 9/8/7 images, fingerprint 0a1b2c", "another note"], "0a1b2c"),
        (["a cell that failed before it had read its data"], ""),
    ],
)
def test_version_1_had_the_fingerprint_of_the_data_in_a_note(
    tmp_path: Path, notes: list[str], fingerprint: str
) -> None:
    row = {**make_record().to_json(), "schema_version": 1, "notes": notes}
    del row["data_fingerprint"]
    store_row(tmp_path, row)
    [record], problems = spool.read(tmp_path)
    assert (record.data_fingerprint, list(record.notes), problems) == (fingerprint, notes, [])


def test_up_to_version_2_nothing_had_kernels_to_fall_back_from(tmp_path: Path) -> None:
    row = {**make_record().to_json(), "schema_version": 2}
    del row["fallback"]
    path = store_row(tmp_path, row)
    before = path.read_bytes()
    assert spool.read(tmp_path) == ([make_record()], [])
    assert path.read_bytes() == before


def test_an_older_row_without_an_upgrader_is_a_problem(tmp_path: Path) -> None:
    store_row(tmp_path, {**make_record().to_json(), "schema_version": -3})
    assert "no way to upgrade schema version -3" in spool.read(tmp_path)[1][0]


def fail_with(code: int) -> Any:
    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.write(tmp_path, make_record(seed=0))
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(spool.StoreError, match=r"No space left.*free some space"):
        spool.write(tmp_path, make_record(seed=1))
    assert spool.read(tmp_path) == ([make_record(seed=0)], [])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_real_limit_on_file_size_leaves_nothing_behind(tmp_path: Path) -> None:
    """The kernel refuses the write itself, as it does on a full disk."""
    code = """
import resource, sys
from example_records import make_record
from normbench import spool
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    spool.write(sys.argv[1], make_record())
except spool.StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=TESTS, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"cannot write records to {tmp_path}: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(spool.StoreError, match=r"cannot write records to .*file"):
        spool.check_writable(tmp_path / "file" / "spool")


def test_no_permission_is_one_clear_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o500)
    as_root = os.geteuid() == 0
    if as_root:  # whom permissions do not stop
        os.seteuid(65534)
    try:
        with pytest.raises(spool.StoreError, match=r"cannot write records to .*Permission denied"):
            spool.check_writable(folder)
    finally:
        if as_root:
            os.seteuid(0)


def test_checking_a_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    spool.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, first, first + 25) for first in (0, 25, 50, 75)]
    for writer in writers:
        writer.communicate()
    records, problems = spool.read(tmp_path)
    assert problems == []
    assert sorted(record.cell.seed for record in records) == list(range(100))


def test_a_killed_writer_leaves_every_record_it_had_finished(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, 0, 10**9)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    finished = [0, *map(int, writer.communicate()[0].splitlines())]
    records, problems = spool.read(tmp_path)
    assert problems == []
    assert {record.cell.seed for record in records} >= set(finished)


numbers = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    return dataclasses.replace(
        make_record(params=draw(st.dictionaries(texts, plain, max_size=3))),
        metrics=draw(st.dictionaries(texts, numbers, max_size=4)),
        samples=tuple(draw(st.lists(st.floats(0, 1e6), max_size=4))),
        slots=draw(st.dictionaries(texts, plain, max_size=3)),
        notes=tuple(draw(st.lists(texts, max_size=3))),
        reason=draw(texts),
        fallback=draw(texts),
    )


@given(records())
def test_records_survive_json(record: Record) -> None:
    back = Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))
    for name, value in record.metrics.items():
        other = back.metrics[name]
        assert other == value or (math.isnan(other) and not math.isfinite(value))
    assert dataclasses.replace(back, metrics={}) == dataclasses.replace(record, metrics={})


@given(records(), st.sampled_from([f.name for f in dataclasses.fields(Record)]), texts)
def test_a_record_takes_exactly_its_keys(record: Record, missing: str, extra: str) -> None:
    row = record.to_json()
    with pytest.raises(CellError, match=f"misses {missing}"):
        Record.from_json({name: value for name, value in row.items() if name != missing})
    if extra not in row:
        with pytest.raises(CellError, match="has unknown"):
            Record.from_json({**row, extra: 1})
