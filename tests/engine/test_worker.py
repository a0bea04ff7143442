"""The lean worker: cells in, records out, nothing else on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fake_task import make_cell
from test_real_cells import make_real_cell

from normbench import spool
from normbench.cells import Cell, Record

HERE = Path(__file__).parent
PROGRAM = "import sys, fake_task; from normbench.engine.worker import main; sys.exit(main())"


def work(cells: list[Cell] | str, *options: str) -> subprocess.CompletedProcess[str]:
    lines = (
        cells
        if isinstance(cells, str)
        else "".join(json.dumps(cell.to_json()) + "\n" for cell in cells)
    )
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "--device", "cpu", *options],
        cwd=HERE, input=lines, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_one_record_per_cell_in_order_and_nothing_else() -> None:
    done = work([make_cell(0), make_cell(1, "print"), make_cell(2, "fault")])
    records = [Record.from_json(json.loads(line)) for line in done.stdout.splitlines()]
    assert [record.status for record in records] == ["ok", "ok", "error"]
    assert "a stray print" in done.stderr
    assert "a stray write" in done.stderr
    assert done.returncode == 0


def test_a_bad_line_is_named_before_anything_runs() -> None:
    good = json.dumps(make_cell(0).to_json())
    done = work(f'{good}\n\n{{"suite": "x"}}\n')
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: line 3 of the input is not a cell: cell misses")


def test_a_spool_holds_the_records_and_lets_a_second_run_continue(tmp_path: Path) -> None:
    cells = [make_cell(0), make_cell(1)]
    stopped = work(cells, "--spool", str(tmp_path), "--deadline", "0")
    assert stopped.returncode == 3
    assert "2 of 2 cells left; run again to continue" in stopped.stderr
    assert work(cells[:1], "--spool", str(tmp_path)).returncode == 0
    done = work(cells, "--spool", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert "2 cells, 1 done already" in done.stderr
    records, problems = spool.read(tmp_path)
    assert sorted(record.cell.seed for record in records) == [0, 1]
    assert problems == []


def test_failed_cells_run_again_when_asked_and_after_the_new_ones(tmp_path: Path) -> None:
    cells = [make_cell(0, "fault"), make_cell(1), make_cell(2)]
    assert work(cells[:2], "--spool", str(tmp_path)).returncode == 0
    kept = work(cells[:2], "--spool", str(tmp_path))
    assert "2 cells, 2 done already" in kept.stderr
    retried = work(cells, "--spool", str(tmp_path), "--retry-failed")
    assert "3 cells, 1 done already" in retried.stderr
    order = [line for line in retried.stderr.splitlines() if line.startswith("[")]
    assert [line.partition("seed ")[2][0] for line in order] == ["2", "0"]


def test_the_program_needs_only_what_a_gpu_machine_has() -> None:
    """`python -m` itself, where the packages that it must do without cannot be imported."""
    code = """
import runpy, sys
for name in ("polars", "pydantic", "wandb", "datasets", "typer", "scipy", "sklearn"):
    sys.modules[name] = None
sys.argv = ["worker", "--device", "cpu"]
runpy.run_module("normbench.engine.worker", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code], text=True,
        input=json.dumps(make_real_cell().to_json()) + "\n", capture_output=True, check=False,
    )  # fmt: skip
    record = Record.from_json(json.loads(done.stdout))
    assert (record.status, record.reason) == ("ok", "")


def test_supervised_cells_that_crash_or_hang_cost_no_other(tmp_path: Path) -> None:
    cells = [make_cell(0, "segfault"), make_cell(1, "sleep", seconds=60, timeout_seconds=1)]
    done = work([*cells, make_cell(2)], "--spool", str(tmp_path), "--supervised")
    assert done.returncode == 0, done.stderr
    records, _ = spool.read(tmp_path)
    assert {r.cell.seed: r.status for r in records} == {0: "error", 1: "timeout", 2: "ok"}
