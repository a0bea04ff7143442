"""`normbench suite`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normbench.cells import Cell
from normbench.cli import app
from normbench.suites import SuiteError, json_schema

SUITES = Path(__file__).parents[2] / "suites"
SMOKE = SUITES / "timm-smoke.yaml"
runner = CliRunner()


def test_check_counts_the_cells_of_a_good_suite() -> None:
    result = runner.invoke(app, ["suite", "check", str(SMOKE)])
    assert (result.exit_code, result.stdout) == (0, f"{SMOKE}: ok, 4 cells\n")


def test_check_reports_every_bad_file_and_exits_2(tmp_path: Path) -> None:
    bad, empty = tmp_path / "bad.yaml", tmp_path / "empty.yaml"
    bad.write_text(SMOKE.read_text().replace("task:", "tsak:"))
    empty.write_text("")
    result = runner.invoke(app, ["suite", "check", str(bad), str(SMOKE), str(empty)])
    line = bad.read_text().splitlines().index("tsak: accuracy") + 1
    assert result.exit_code == 2
    assert result.stdout == f"{SMOKE}: ok, 4 cells\n"
    assert result.stderr.splitlines() == [
        f"{bad}:{line}:1: tsak: unknown key; did you mean 'task'?",
        f"{empty}: the file is empty; see docs/suites.md",
    ]


def test_cells_are_json_lines_that_the_worker_reads() -> None:
    result = runner.invoke(app, ["suite", "cells", str(SMOKE)])
    cells = [Cell.from_json(json.loads(line)) for line in result.stdout.splitlines()]
    assert {cell.model for cell in cells} == {"resnet18", "mobilenetv3_small_100"}


def test_cells_of_a_bad_suite_are_refused(tmp_path: Path) -> None:
    result = runner.invoke(app, ["suite", "cells", str(tmp_path)])
    assert isinstance(result.exception, SuiteError)


@pytest.mark.parametrize("command", [["schema"], ["cells", str(SMOKE)]])
def test_out_writes_what_would_be_printed(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = runner.invoke(app, ["suite", *command]).stdout
    runner.invoke(app, ["suite", *command, "--out", str(out)])
    assert out.read_text(encoding="utf-8") == printed


def test_schema_is_the_suites_json_schema() -> None:
    assert json.loads(runner.invoke(app, ["suite", "schema"]).stdout) == json_schema()
