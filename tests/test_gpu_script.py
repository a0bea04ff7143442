"""`make gpu` where there is no GPU: it leaves no test file out, and says that CUDA is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from normbench import tasks
from normbench.cells import Cell

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu.py"
NEEDS_MORE: dict[str, set[str]] = {}
"""Files that a machine with nothing but the GPU script's packages leaves out, and what for."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("source_tree", None)


def test_every_test_file_is_run_on_a_machine_with_the_needed_packages_only(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {*script.NEEDED, "triton", "torchvision", "PIL", "yaml", *sys.stdlib_module_names}
    monkeypatch.setattr(script, "_exists", lambda package: package in there)
    files = [path for stage in script.TEST_FILES for path in script._test_files(stage)]
    left_out = {str(f.relative_to(ROOT)): script._foreign_imports(f) for f in files}
    assert {name: missing for name, missing in left_out.items() if missing} == NEEDS_MORE
    assert len(left_out) == len(files)
    folders = {"tests/gpu", "tests/interpreter", "tests/contract", "tests/methods", "tests/surgery"}
    assert {str(Path(f).parent) for f in left_out} == folders
    assert set(left_out) >= {str(f.relative_to(ROOT)) for f in (ROOT / "tests/gpu").glob("test_*")}


def cells(*acts: str) -> list[Cell]:
    sys.path.insert(0, str(ROOT / "tests" / "engine"))
    from fake_task import make_cell

    sys.path.pop(0)
    return [make_cell(number, act) for number, act in enumerate(acts)]


@pytest.fixture
def on_the_cpu(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[ModuleType]:
    """The script, its worker on the CPU with the task `fake`, its records in a folder."""
    run = subprocess.run

    def worker(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "normbench.engine.worker"]
        program = (
            "import sys, fake_task; from normbench.engine.worker import main; sys.exit(main())"
        )
        given = ["cpu" if word == "cuda" else word for word in command[3:]]
        paths = os.pathsep.join([str(ROOT / "tests" / "engine"), *sys.path])
        options["env"] = options["env"] | {"PYTHONPATH": paths}
        return run([command[0], "-c", program, *given], **options)

    monkeypatch.setattr(script.subprocess, "run", worker)
    monkeypatch.setattr(script, "RECORDS", tmp_path)
    monkeypatch.setattr(script, "SPOOL", tmp_path / "spool")
    known = tasks.TASKS.get("fake")  # the tests of the engine may have it, in this very process
    yield script
    if known is None:
        sys.modules.pop("fake_task", None)
        tasks.TASKS.pop("fake", None)


def test_a_stage_of_cells_ends_at_its_deadline_and_goes_on_when_called_again(
    on_the_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script, lines = on_the_cpu, "".join(json.dumps(c.to_json()) + "\n" for c in cells("ok", "ok"))
    monkeypatch.setattr(script, "LAST_CELL_STARTS", 0)
    assert script._run("a stage", lines) == script.UNFINISHED
    assert "a stage: out of time" in capfd.readouterr().out
    monkeypatch.setattr(script, "LAST_CELL_STARTS", 60)
    assert script._run("a stage", lines) == script.DONE
    assert "2 of 2 cells have a record: 2 ok" in capfd.readouterr().out


def test_a_cell_that_kills_its_process_is_a_record_and_the_others_are_run(
    on_the_cpu: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps(cell.to_json()) + "\n" for cell in cells("segfault", "ok"))
    assert on_the_cpu._run("a stage", lines) == on_the_cpu.FAILED
    assert "2 of 2 cells have a record: 1 error, 1 ok" in capfd.readouterr().out


def test_the_stage_that_only_tries_is_run_on_request(script: ModuleType) -> None:
    assert set(script.ON_REQUEST) == {"kernel-tune"} <= set(script.STAGES)


def test_without_cuda_it_says_so_and_ends_with_2() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "finds no CUDA device" in done.stdout
