"""Data that change under finished cells: noticed, measured again, never mixed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_real_cells import make_real_cell

import normbench
from normbench import data
from normbench.cells import Cell
from normbench.engine import plan
from normbench.store import Store


def write_images(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for pixels in rng.integers(0, 256, (160, 28, 28), dtype=np.uint8):
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": images, "label": [i % 4 for i in range(160)]}), path)


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Cell, Path, Path]:
    """A cell over a file of images, the file, and the folder with the cell's record."""
    path, out = tmp_path / "images.parquet", tmp_path / "results"
    write_images(path, 0)
    cell = make_real_cell("none", dataset=f"parquet:{path}")
    summary = normbench.run([cell], out=out, device="cpu", workers=0)
    assert summary.measured == 1, summary.records[0].reason
    return cell, path, out


def test_a_cell_over_unchanged_data_is_skipped(measured: tuple[Cell, Path, Path]) -> None:
    cell, path, out = measured
    write_images(path, 0)  # new times, same content
    planned = plan([cell], out=out, device="cpu")
    assert (planned.skipped, planned.problems) == (1, ())


def test_a_cell_over_changed_data_is_measured_again_once(
    measured: tuple[Cell, Path, Path],
) -> None:
    cell, path, out = measured
    write_images(path, 1)
    planned = plan([cell], out=out, device="cpu")
    assert planned.to_run == (cell,)
    assert "to be measured again: 1" in planned.problems[0]
    summary = normbench.run([cell], out=out, device="cpu", workers=0)
    assert (summary.skipped, summary.measured) == (0, 1)
    assert plan([cell], out=out, device="cpu").skipped == 1
    now = data.load(cell.dataset).fingerprint
    assert [r.data_fingerprint for r in Store(out).records()] == [now]


def test_data_that_are_gone_leave_their_records_standing(
    measured: tuple[Cell, Path, Path],
) -> None:
    cell, path, out = measured
    path.unlink()
    planned = plan([cell], out=out, device="cpu")
    assert planned.skipped == 1
    assert "changed is unknown" in planned.problems[0]
