"""The Makefile's recipes run: on a suite of seconds, with this Python in place of .venv."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITE = """
name: tiny
question: Does make demo lead from a suite to a page?
task: accuracy
methods: [batch_norm, group_norm]
models: [nb_resnet10_1x1]
datasets: [embedded:digits]
batch_sizes: [8]
seeds: [0, 1]
training: {samples: 256, evaluations: 1}
min_steps: 30
"""


OF_AN_OUTER_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "NORMBENCH_RESULTS")
"""The tests run under `make test`, whose options are not for these."""


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in OF_AN_OUTER_MAKE}


class Make:
    """`make` in an empty folder, the environment taken as made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "suites").mkdir()
        (folder / "suites" / "tiny.yaml").write_text(SUITE)
        self.environment = clean_environment()

    @staticmethod
    def command(*words: str) -> list[str]:
        made = [word for stamp in (".venv/run", ".venv/dev") for word in ("-o", stamp)]
        binaries = Path(sys.executable).parent
        return ["make", "-f", str(ROOT / "Makefile"), *made, f"BIN={binaries}", *words]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.folder, env=self.environment, capture_output=True,
            text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return Make(tmp_path)


def test_demo_leads_to_a_page_and_a_second_call_measures_nothing(make: Make) -> None:
    first = make("demo", "SUITE=suites/tiny.yaml")
    assert first.returncode == 0, first.stderr
    assert "4 cells: 4 ok" in first.stdout
    assert "[4/4]" in first.stderr
    page = Path(first.stdout.rpartition("browser: ")[2].strip())
    assert page == make.folder / "site" / "index.html"
    assert "Does make demo lead from a suite to a page?" in page.read_text(encoding="utf-8")
    again = make("demo", "SUITE=suites/tiny.yaml")
    assert again.returncode == 0
    assert "4 already measured, 0 to run" in again.stderr


def test_a_demo_killed_in_the_middle_goes_on_where_it_was(make: Make) -> None:
    """SIGKILL to make, the run and its workers at once: what was finished is not run again."""
    process = subprocess.Popen(
        make.command("demo", "SUITE=suites/tiny.yaml"), cwd=make.folder, env=make.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    spool = make.folder / "results" / "spool"
    end = time.monotonic() + 120
    while not list(spool.glob("[!.]*.json")) and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(spool.glob("[!.]*.json")))
    assert finished > 0
    again = make("demo", "SUITE=suites/tiny.yaml")
    assert again.returncode == 0, again.stderr
    assert f"{finished} already measured, {4 - finished} to run" in again.stderr
    assert "4 cells: 4 ok" in again.stdout


def test_a_suite_that_is_wrong_ends_the_demo_without_a_page(make: Make) -> None:
    (make.folder / "suites" / "tiny.yaml").write_text(SUITE.replace("group_norm", "grup_norm"))
    ran = make("demo", "SUITE=suites/tiny.yaml")
    assert ran.returncode == 2
    assert "did you mean 'group_norm'" in ran.stderr
    assert not (make.folder / "site").exists()


def test_help_lists_every_target(make: Make) -> None:
    listed = set(re.findall(r"^  make ([a-z-]+)", make("help").stdout, re.MULTILINE))
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert listed == {target for line in phony for target in line.split()}


def test_test_runs_the_part_that_is_asked_for() -> None:
    """What README and docs/methods.md write as `make test TESTS=…`."""
    words = ("test", "TESTS=tests/contract -k layer_norm_chw --collect-only -q", "WORKERS=0")
    ran = subprocess.run(
        Make.command(*words), cwd=ROOT, env=clean_environment(), capture_output=True, text=True,
        timeout=300, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "layer_norm_chw" in ran.stdout
    assert "group_norm" not in ran.stdout


@pytest.mark.parametrize(
    ("tests", "processes"),
    [
        ("", ["--ignore=tests/interpreter", "tests/interpreter"]),
        ("tests/cli", ["tests/cli"]),
        ("tests/interpreter", ["tests/interpreter"]),
    ],
)
def test_interpreted_kernels_are_tested_in_a_process_of_their_own(
    make: Make, tests: str, processes: list[str]
) -> None:
    printed = make("-n", "test", f"TESTS={tests}").stdout
    assert re.findall(r'"not slow" (\S+) \|\| code=', printed) == processes


def test_a_failure_in_either_process_fails(make: Make) -> None:
    """The folder has no tests/interpreter, and in the other process pytest finds no test."""
    assert make("test", "WORKERS=0").returncode == 2


def test_without_being_named_the_interpreters_tests_are_not_in_the_process() -> None:
    """They would make Triton interpret the kernels for every test after them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "tests", "-k", "test_bytes"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "make test runs it" in ran.stdout
    assert "deselected" in ran.stdout
    assert "test_bytes.py" not in ran.stdout


def test_catalogue_and_cells_are_written_where_they_are_committed(make: Make) -> None:
    made = ("leaderboard/catalogue.json", "docs/catalogue.md")
    for name in made:
        (make.folder / name).parent.mkdir()
    assert make("catalogue").returncode == 0
    for name in made:
        assert (make.folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert make("gpu-cells", "GPU_SUITES=tiny").returncode == 0
    cells = make.folder / "suites" / "cells" / "tiny.cells.jsonl.gz"
    assert len(gzip.decompress(cells.read_bytes()).splitlines()) == 4
