"""Methods that fall back from their kernels, on the command line: said once, marked everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import made_up_kernels
import pytest
import torch
from example_records import make_record
from made_up_kernels import NAME, NO_CUDA
from typer.testing import CliRunner, Result

from normbench.cli import app
from normbench.registry import get, list_methods
from normbench.store import Store

SUITE = f"""
name: tiny
question: Which path?
task: accuracy
methods: [group_norm, {NAME}]
models: [nb_resnet10_1x1]
datasets: [embedded:digits]
batch_sizes: [8]
seeds: [0, 1]
training: {{samples: 64, evaluations: 1}}
min_steps: 4
"""
SENTENCE = f"{NAME} ran as its eager method: {NO_CUDA}; such records never enter a board"

Call = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path, with_kernels: str) -> Call:
    (tmp_path / "suite.yaml").write_text(SUITE)
    runner = CliRunner(env={"COLUMNS": "120"})

    def put(*arguments: str) -> Result:
        return runner.invoke(app, list(arguments), catch_exceptions=False)

    return put


def run(call: Call, folder: Path, *options: str) -> Result:
    fixed = ("--workers", "0", "--device", "cpu", "--wandb", "disabled")
    return call("run", str(folder / "suite.yaml"), "--out", str(folder / "r"), *fixed, *options)


def test_a_run_says_it_once_and_marks_the_row(call: Call, tmp_path: Path) -> None:
    result = run(call, tmp_path)
    assert result.exit_code == 0
    assert result.output.count("eager method") == 1
    assert f"(eager): {SENTENCE}." in result.stdout.splitlines()
    assert len(re.findall(rf"^{NAME} \(eager\) .*\(n=2\)$", result.stdout, re.MULTILINE)) == 1
    assert re.search(r"^group_norm .*\(n=2\)$", result.stdout, re.MULTILINE)
    notes = [r.notes for r in Store(tmp_path / "r").records() if r.cell.method == NAME]
    assert [sum(NO_CUDA in note for note in of_one) for of_one in notes] == [1, 1]  # surgery's


def test_a_dry_run_says_it_before(call: Call, tmp_path: Path) -> None:
    lines = run(call, tmp_path, "--dry-run").stdout.splitlines()
    assert lines.count(SENTENCE.replace(" ran ", " would run ")) == 1


def test_where_the_kernels_run_nothing_is_said(call: Call, tmp_path: Path) -> None:
    made_up_kernels.register(made_up_kernels.runs)
    assert "eager" not in run(call, tmp_path, "--dry-run").output
    assert "eager" not in run(call, tmp_path).output


def test_results_show_the_reason_and_split_by_it(call: Call, tmp_path: Path) -> None:
    for seed, reason in ((0, ""), (1, "no Triton")):
        Store(tmp_path).append(make_record(seed=seed, fallback=reason))
    options = ("results", "--results", str(tmp_path))
    table = call(*options).stdout.splitlines()
    assert [line.endswith("  eager: no Triton") for line in table if "  ok  " in line] == [
        False,
        True,
    ]
    found = json.loads(call(*options, "--filter", "fallback=", "--format", "json").stdout)
    assert [row["seed"] for row in found] == [0]
    grouped = call(*options, "--group", "variant", "--format", "json").stdout
    assert [(row["fallback"], row["test_accuracy_n"]) for row in json.loads(grouped)] == [
        ("", 1), ("no Triton", 1),
    ]  # fmt: skip


def test_the_table_has_both_reasons_in_lines_that_fit(call: Call, tmp_path: Path) -> None:
    for seed in (0, 1):
        failed = make_record(status="error", reason="r" * 90, fallback="no Triton", seed=seed)
        Store(tmp_path).append(failed)
    lines = call("results", "--results", str(tmp_path)).stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert re.search("  eager: no Triton; r+…$", lines[-1])


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_the_capability_matrix_is_marked(call: Call, tmp_path: Path, form: str) -> None:
    asked = ("capabilities", NAME, "--fast", "--workers", "0", "--out", str(tmp_path))
    text = call(*asked, "--format", form).stdout
    assert f"{NAME} (eager)" in text
    assert f"{SENTENCE}\n" in text
    [method] = json.loads(call(*asked, "--format", "json").stdout)["methods"]
    assert method["fallback"] == NO_CUDA


def test_methods_shows_which_path_runs_here(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, short, full in (
        (False, "eager", f"eager ({NO_CUDA})"), (True, "kernels", "kernels on cuda"),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert f"Path here: {full}" in call("methods", NAME).stdout.splitlines()
        table = call("methods").stdout
        assert len(re.findall(rf"^{NAME} .*\(here: {short}\)$", table, re.MULTILINE)) == 1
        with_fallback = [name for name in list_methods() if get(name).fallback is not None]
        # And the legend; a long title is wrapped anywhere.
        assert len(re.findall(r"here:\s", table)) == len(with_fallback) + 1
        assert "Path here" not in call("methods", "group_norm").stdout


@pytest.mark.parametrize("form", ["--json", "--markdown"])
def test_what_is_committed_does_not_depend_on_the_machine(
    call: Call, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    there = call("methods", form).stdout
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert call("methods", form).stdout == there
    assert NAME in there
    assert NO_CUDA not in there


def test_without_kernels_in_the_catalogue_the_device_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from normbench import registry

    own = {n: registry.get(n) for n in registry.list_methods()}
    monkeypatch.setattr(registry, "_METHODS", {n: m for n, m in own.items() if not m.fallback})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked for a device"))
    result = CliRunner().invoke(app, ["methods"], catch_exceptions=False)
    assert "here: " not in result.stdout
