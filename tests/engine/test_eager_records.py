"""Records of a method that fell back from its kernels: marked, and finished only while it would."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import made_up_kernels
import pytest
import torch
from fake_task import make_cell
from made_up_kernels import NAME, NO_CUDA
from test_real_cells import make_real_cell

from normbench.capabilities import SETTINGS
from normbench.cells import Cell, Record
from normbench.engine import environment, plan
from normbench.engine.execute import execute, fallback, make_record, now
from normbench.store import Store
from normbench.tasks import capability
from normbench.tasks.outcome import Outcome

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
HERE = Path(__file__).parent
WORKER = """
import sys
sys.path.insert(0, "..")
import fake_task, made_up_kernels
made_up_kernels.register(getattr(made_up_kernels, sys.argv.pop(1)))
from normbench.engine.worker import main
sys.exit(main())
"""


def kernel_cell(seed: int = 0, act: str = "ok", precision: str = "fp32") -> Cell:
    cell = dataclasses.replace(make_cell(seed, act), method=NAME, variant=NAME, params={})
    return dataclasses.replace(cell, precision=precision)


def examination() -> Cell:
    cell = capability.cell(NAME, fast=True)
    small = {**SETTINGS, "channels": 4, "side": 4, "cost_side": 4, "rounds": 2, "fast": True}
    return dataclasses.replace(cell, config={**cell.config, **small})


@pytest.mark.parametrize("act", ["ok", "refuse", "fault"])
def test_a_record_says_why_whatever_its_status(with_kernels: str, act: str) -> None:
    assert execute(kernel_cell(act=act), device=CPU).fallback == NO_CUDA


def test_every_task_leaves_the_mark(with_kernels: str) -> None:
    trained = make_real_cell(NAME)
    for cell in (trained, examination()):
        record = execute(cell, device=CPU)
        assert (record.status, record.fallback) == ("ok", NO_CUDA)


def test_methods_without_kernels_and_unknown_ones_leave_none() -> None:
    assert execute(make_cell(), device=CPU).fallback == ""
    assert execute(dataclasses.replace(make_cell(), method="gone"), device=CPU).fallback == ""


@pytest.mark.parametrize(
    ("precision", "why"), [("fp32", ""), ("bf16", ""), ("fp16", "no kernels for torch.float16")]
)
def test_the_device_and_the_cells_precision_decide(
    with_kernels: str, precision: str, why: str
) -> None:
    assert fallback(kernel_cell(precision=precision), CUDA) == why


def test_a_cell_whose_process_died_is_marked_by_the_driver(with_kernels: str) -> None:
    record = make_record(
        kernel_cell(), Outcome("error", "worker died"), device=CPU, threads=1, submitter="tests",
        started_at=now(), wall_seconds=1.0,
    )  # fmt: skip
    assert record.fallback == NO_CUDA


def test_an_eager_record_is_finished_work_while_the_kernels_cannot_run(
    with_kernels: str, tmp_path: Path
) -> None:
    Store(tmp_path).append(execute(kernel_cell(), device=CPU))
    assert plan([kernel_cell()], out=tmp_path, device="cpu").skipped == 1


def test_it_is_not_finished_for_another_hardware_class(
    with_kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = execute(kernel_cell(), device=CPU)
    assert record.hardware_class.startswith("cpu: ")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert environment.hardware_class(CUDA) == "cuda: NVIDIA H200"
    there = dataclasses.replace(record, hardware_class="cuda: NVIDIA H200")
    Store(tmp_path).append(there)
    assert plan([kernel_cell()], out=tmp_path, device="cpu").skipped == 0


def test_once_the_kernels_run_the_cell_is_measured_again_and_then_finished(
    with_kernels: str, tmp_path: Path
) -> None:
    """Triton was installed, say: hardware class and cell id are as before."""
    store = Store(tmp_path)
    store.append(execute(kernel_cell(), device=CPU))
    made_up_kernels.register(made_up_kernels.runs)
    assert plan([kernel_cell()], out=tmp_path, device="cpu").skipped == 0
    store.append(dataclasses.replace(execute(kernel_cell(), device=CPU), record_id="0" * 16))
    assert plan([kernel_cell()], out=tmp_path, device="cpu").skipped == 1


def test_a_record_of_the_kernels_stays_finished_where_they_cannot_run_any_more(
    with_kernels: str, tmp_path: Path
) -> None:
    made_up_kernels.register(made_up_kernels.runs)
    Store(tmp_path).append(execute(kernel_cell(), device=CPU))
    made_up_kernels.register()
    assert plan([kernel_cell()], out=tmp_path, device="cpu").skipped == 1


def work(spool: Path, kernels: str = "by_device") -> subprocess.CompletedProcess[str]:
    lines = "".join(json.dumps(kernel_cell(seed).to_json()) + "\n" for seed in (0, 1))
    command = [sys.executable, "-c", WORKER, kernels, "--device", "cpu", "--spool", str(spool)]
    return subprocess.run(
        command, cwd=HERE, input=lines, capture_output=True, text=True, check=True
    )


def test_the_lean_worker_says_it_once_and_resumes_by_the_same_rule(tmp_path: Path) -> None:
    said = work(tmp_path).stderr.splitlines()
    note = f"Note: {NAME} ran as its eager method: {NO_CUDA}; such records never enter a board"
    assert said.count(note) == 1
    assert "2 cells, 2 done already" in work(tmp_path).stderr
    assert "2 cells, 0 done already" in work(tmp_path, "runs").stderr
    assert "2 cells, 2 done already" in work(tmp_path, "runs").stderr


def test_the_mark_survives_json(with_kernels: str) -> None:
    record = execute(kernel_cell(), device=CPU)
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
