"""Kill the driver in the middle: finished cells stay, the rest runs next time, nobody survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_task import make_cell

import normbench
from normbench.cells import Cell
from normbench.store import Store

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc"
)


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def session(leader: int) -> list[str]:
    """Command lines of all processes in a session that are not zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(f"{folder.name}: {command}")
    return found


@contextmanager
def driver(cells: list[Cell], out: Path) -> Iterator[subprocess.Popen[str]]:
    """The program run_fake_cells.py in a session of its own."""
    lines = "".join(json.dumps(cell.to_json()) + "\n" for cell in cells)
    (out.parent / "cells.jsonl").write_text(lines)
    with (out.parent / "cells.jsonl").open() as source:
        process = subprocess.Popen(
            [sys.executable, HERE / "run_fake_cells.py", str(out)], cwd=HERE, text=True,
            stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def in_flight(folder: Path, hang: bool = True) -> list[Cell]:
    """Three quick cells, then cells that sign in and hang on both workers, then a quick one."""
    folder.mkdir(exist_ok=True)
    slow = [
        make_cell(seed, "sleep", seconds=600 if hang else 0, sign_in=str(folder))
        for seed in (10, 11)
    ]
    return [make_cell(0), make_cell(1), make_cell(2), *slow, make_cell(3)]


def both_hang(folder: Path, process: subprocess.Popen[str]) -> Callable[[], bool]:
    def check() -> bool:
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        return len(list(folder.iterdir())) == 2

    return check


def test_a_killed_driver_loses_only_cells_in_flight_and_leaves_no_process(tmp_path: Path) -> None:
    cells, out = in_flight(tmp_path / "signed-in"), tmp_path / "results"
    with driver(cells, out) as process:
        until(both_hang(tmp_path / "signed-in", process))
        process.send_signal(signal.SIGKILL)
        until(lambda: not session(process.pid), seconds=30)
    store = Store(out)
    assert sorted(record.cell.seed for record in store.records()) == [0, 1, 2]
    assert store.problems == []
    summary = normbench.run(
        [cell for cell in cells if cell.seed < 10], out=out, device="cpu", workers=0
    )
    assert (summary.skipped, summary.measured) == (3, 1)


def test_ctrl_c_keeps_finished_records_and_ends_with_130(tmp_path: Path) -> None:
    cells, out = in_flight(tmp_path / "signed-in"), tmp_path / "results"
    with driver(cells, out) as process:
        until(both_hang(tmp_path / "signed-in", process))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert stdout.splitlines()[-1].strip() == "Interrupted"
        assert stderr == ""
        until(lambda: not session(process.pid), seconds=30)
    assert sorted(record.cell.seed for record in Store(out).records()) == [0, 1, 2]
