"""What keeping records costs: `pytest benchmarks/test_store.py`; figures in docs/decisions/001."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from normbench import spool
from normbench.cells import Cell, Record
from normbench.store import Store, _digest, _frame, wide

ROWS = 100_000
SPOOL = 500


def make_record(index: int) -> Record:
    """About as large as a record of the task accuracy; ids as random as real ones."""
    name = hashlib.sha256(str(index).encode()).hexdigest()
    cell = Cell(
        suite="bench", task="accuracy", method="batch_renorm",
        params={"eps": 1e-3, "momentum": 0.01, "rmax": 3.0, "dmax": 5.0, "schedule": "fraction"},
        variant="batch_renorm(schedule=fraction)", model="nb_resnet10_1x1", model_args={},
        dataset="embedded:mnist", dataset_args={}, batch_size=2 ** (index % 8), seed=index,
        precision="fp32", config={f"setting_{i}": 0.1 * i for i in range(20)},
    )  # fmt: skip
    metrics = {f"metric_{i}": (index * 37 + i) % 1009 / 1009 for i in range(14)}
    curve = tuple({"step": 75.0 * i, "loss": metrics["metric_1"] / i} for i in range(1, 5))
    return Record(
        record_id=name[:16], cell_id=name[16:32], cell=cell, code_hash="0" * 16, protocol=1,
        status="ok", reason="", metrics=metrics, curve=curve, trials=(), samples=(),
        slots={"found": 12, "replaced": 12}, hardware_class="cpu: some processor",
        environment={"packages": {f"package_{i}": "1.2.3" for i in range(6)}, "threads": 1},
        submitter="local", started_at=f"2026-01-01T{index % 24:02d}:00:00+00:00", wall_seconds=6.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """100,000 records in one part, without the minutes that as many spool files take."""
    store = Store(tmp_path_factory.mktemp("large"))
    buffer = io.BytesIO()
    _frame(map(make_record, range(ROWS))).write_parquet(buffer, compression="zstd")
    content = buffer.getvalue()
    spool.write_bytes(store.parts_folder, f"{_digest(content)}.parquet", content)
    return store


def spooled(folder: Path) -> Store:
    store = Store(folder)
    for index in range(SPOOL):
        store.append(make_record(index))
    return store


def test_append(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    store, record, seeds = Store(tmp_path), make_record(0), iter(range(10**9))
    benchmark(lambda: store.append(dataclasses.replace(record, record_id=f"{next(seeds):016}")))


def test_read_100k(benchmark: BenchmarkFixture, large: Store) -> None:
    frame = benchmark.pedantic(large.read, rounds=5)
    assert frame.height == ROWS
    benchmark.extra_info["megabytes"] = sum(path.stat().st_size for path in large.paths()) / 1e6


def test_finished_100k(benchmark: BenchmarkFixture, large: Store) -> None:
    found = benchmark.pedantic(large.finished, args=("cpu: some processor",), rounds=5)
    assert len(found) == ROWS


def test_wide_100k(benchmark: BenchmarkFixture, large: Store) -> None:
    assert benchmark.pedantic(wide, args=(large.read(),), rounds=3).height == ROWS


def test_read_spool_of_500(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    assert benchmark.pedantic(spooled(tmp_path).read, rounds=5).height == SPOOL


def test_compact_spool_of_500(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    folders = (tmp_path / str(number) for number in range(10**9))
    benchmark.pedantic(
        Store.compact, setup=lambda: ((spooled(next(folders)),), {}), rounds=3
    )  # fmt: skip
