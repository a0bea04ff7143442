"""`normbench import-benchmark`: pytest-benchmark's own JSON, as it is and tampered with."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from normbench import benchmark_json, cli, registry
from normbench.cells import Record
from normbench.engine.execute import identify, surroundings
from normbench.store import Store

FOREIGN = """
def test_other(benchmark):
    benchmark.pedantic(lambda: None, rounds=2)
"""
IDS = ("batch_norm-2x64x56x56-forward", "batch_renorm-2x64x56x56-forward")

Json = dict[str, Any]


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Json:
    """What `--benchmark-json` writes of two benchmarks of ours and another."""
    folder = tmp_path_factory.mktemp("benchmarks")
    other = folder / "test_foreign.py"
    other.write_text(FOREIGN)
    ours = [f"benchmarks/layers/test_layer_costs.py::test_layer[{name}]" for name in IDS]
    command = [
        sys.executable, "-P", "-m", "pytest", *ours, str(other), "-p", "no:xdist", "-p",
        "no:cacheprovider", "--benchmark-json", str(folder / "layers.json"), "-s",
    ]  # fmt: skip
    # Where the tests themselves run in xdist's workers, the benchmarks must not take this for one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=300, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| batch_renorm | " in done.stdout  # the table of ratios
    content: Json = json.loads((folder / "layers.json").read_text())
    return content


@pytest.fixture
def content(written: Json) -> Json:
    """A copy to tamper with."""
    return copy.deepcopy(written)


class Command:
    """Runs the command in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file, self.results = folder / "layers.json", folder / "results"
        self.capsys = capsys

    def __call__(self, content: Json | None = None) -> tuple[int, str, str]:
        if content is not None:
            self.file.write_text(json.dumps(content))
        with pytest.raises(SystemExit) as left:
            cli.main(["import-benchmark", str(self.file), "--out", str(self.results)])
        return int(left.value.code or 0), *self.capsys.readouterr()

    def records(self) -> list[Record]:
        return Store(self.results).records()

    def refused(self, content: Json | None = None) -> str:
        """The sentence of a refusal, after which nothing has been written."""
        code, out, err = self(content)
        assert (code, out) == (2, "")
        assert err.startswith(f"Error: {self.file}")
        assert len(err.splitlines()) == 1
        assert not self.results.exists()
        return err


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def entry(content: Json, name: str = IDS[0]) -> Json:
    (found,) = (e for e in content["benchmarks"] if name in e["fullname"])
    return dict(found)


def of_ours(content: Json) -> Json:
    """What the first benchmark of ours put into its extra_info."""
    return dict(entry(content))["extra_info"]["normbench"]  # type: ignore[no-any-return]


def test_records_are_what_the_task_would_have_left(content: Json, command: Command) -> None:
    code, out, err = command(content)
    assert (code, err) == (0, "")
    assert out.startswith(f"2 imported, 0 there already. Records: {command.results}/")
    assert "Not ours: " in out
    assert out.rstrip().endswith("::test_other")
    record, renorm = sorted(command.records(), key=lambda r: r.cell.method)
    assert renorm.cell.method == "batch_renorm"
    assert record.cell_id == identify(record.cell)[0]
    assert record.status == "ok"
    assert record.cell.batch_size == 2
    assert record.environment == surroundings(record.cell, torch.device("cpu"), 1)
    assert record.environment["numerics"]["deterministic"] is False
    # pytest-benchmark's statistics and ours are of the same times.
    stats = entry(content)["stats"]
    assert record.metrics["seconds"] == pytest.approx(stats["median"], rel=1e-5)
    assert record.metrics["rounds"] == stats["rounds"] == len(record.samples)
    others = of_ours(content)["samples"]["batch_norm"]
    assert record.trials[1]["samples"]["launched"] == pytest.approx(others, abs=1e-9)
    assert record.metrics["ratio_low"] <= record.metrics["ratio"] <= record.metrics["ratio_high"]
    assert 0.3 < record.metrics["ratio"] < 3  # batch norm against itself


def test_importing_twice_adds_nothing(content: Json, command: Command) -> None:
    command(content)
    before = Store(command.results).paths()
    code, out, _ = command(content)
    assert code == 0
    assert "0 imported, 2 there already" in out
    assert Store(command.results).paths() == before


def test_several_files_are_one_import(content: Json, command: Command, tmp_path: Path) -> None:
    """A bad second file leaves nothing of the first."""
    command.file.write_text(json.dumps(content))
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(SystemExit) as left:
        cli.main(["import-benchmark", str(command.file), str(bad), "--out", str(command.results)])
    assert left.value.code == 2
    assert not command.results.exists()


def test_other_code_is_imported_as_measured_and_told(content: Json, command: Command) -> None:
    of_ours(content)["code_hash"] = "0123456789abcdef"
    code, out, err = command(content)
    assert code == 0
    assert "2 imported" in out
    assert err.startswith("Note: 1 of batch_norm was measured with other code of the method")
    record = next(r for r in command.records() if r.cell.method == "batch_norm")
    assert record.code_hash == "0123456789abcdef"
    assert record.cell_id != identify(record.cell)[0]


def test_no_file_is_one_sentence(command: Command) -> None:
    assert "No such file" in command.refused()


@pytest.mark.parametrize("text", ["", "no JSON", "\xff"])
def test_no_json(text: str, command: Command) -> None:
    command.file.write_bytes(text.encode("latin-1"))
    assert "is not JSON" in command.refused()


@pytest.mark.parametrize(
    "other", [{}, {"benchmarks": []}, {"version": "5.0", "benchmarks": [1]}, [], 3]
)
def test_json_of_something_else(other: Any, command: Command) -> None:
    assert "was not written by pytest-benchmark" in command.refused(other)


def test_no_benchmark_of_ours(content: Json, command: Command) -> None:
    content["benchmarks"] = [e for e in content["benchmarks"] if "test_other" in e["fullname"]]
    assert content["benchmarks"]
    assert "has no benchmark with a record of ours" in command.refused(content)


@pytest.mark.parametrize("key", benchmark_json._KINDS)
def test_a_missing_key(key: str, content: Json, command: Command) -> None:
    del of_ours(content)[key]
    said = command.refused(content)
    assert f"extra_info.normbench lacks {key}" in said
    assert IDS[0] in said


@pytest.mark.parametrize("key", ["method", "config", "batch_size"])
def test_a_cell_that_lacks_a_field(key: str, content: Json, command: Command) -> None:
    del of_ours(content)["cell"][key]
    assert f"its cell lacks {key}" in command.refused(content)


def _set(*path: str, to: Any) -> Callable[[Json], None]:
    def change(told: Json) -> None:
        for key in path[:-1]:
            told = told[key]
        told[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("cell", "method", to="batch_nrom"), "did you mean 'batch_norm'"),
        (_set("cell", "task", to="accuracy"), "its cell is of task 'accuracy'"),
        (_set("cell", "batch_size", to="2"), "has '2' as batch_size, not int"),
        (_set("cell", "more", to=1), "cell has unknown more"),
        (_set("cell", "config", "part", to="backward"), "part is 'backward'"),
        (_set("cell", "config", "height", to=None), "height is None"),
        (_set("protocol", to=99), "it has protocol 99 of task layer; this normbench has 1"),
        (_set("started_at", to="yesterday"), "started_at is 'yesterday', no time"),
        (_set("samples", to={}), "its samples lack batch_norm"),
        (_set("samples", "batch_norm", to=[0.1]), "its samples are no rounds"),
        (_set("samples", "batch_norm", to=[-1.0]), "samples of batch_norm are not all times"),
        (_set("samples", "batch_norm", to=[float("nan")]), "samples of batch_norm are not all"),
        (_set("samples", "batch_norm", to="abc"), "samples of batch_norm are not all times"),
        (_set("environment", to=[]), "has [] as environment, not dict"),
    ],
)
def test_what_cannot_be_is_refused(
    change: Callable[[Json], None], words: str, content: Json, command: Command
) -> None:
    change(of_ours(content))
    said = command.refused(content)
    assert words in said
    assert IDS[0] in said


def test_what_was_saved_without_raw_times(content: Json, command: Command) -> None:
    del entry(content)["stats"]["data"]
    assert "saved without raw times: use --benchmark-json" in command.refused(content)


def test_another_timer(content: Json, command: Command) -> None:
    entry(content)["options"]["timer"] = "process_time"
    assert "timed by process_time, the others by perf_counter" in command.refused(content)


def test_no_rounds(content: Json, command: Command) -> None:
    entry(content)["stats"]["data"] = []
    of_ours(content)["samples"]["batch_norm"] = []
    assert "its samples are no rounds" in command.refused(content)


def test_communication_needs_its_times(content: Json, command: Command) -> None:
    told = of_ours(content)
    told["cell"] |= {"method": "sync_batch_norm"}
    told["cell"]["config"]["processes"] = 2
    assert "its samples lack communication" in command.refused(content)
    told["samples"]["communication"] = told["samples"]["batch_norm"]
    assert command(content)[0] == 0
    record = next(r for r in command.records() if r.cell.method == "sync_batch_norm")
    assert 0.3 < record.metrics["communication_share"] < 3


def test_the_eager_path_stays_marked(content: Json, command: Command) -> None:
    of_ours(content)["fallback"] = "no CUDA device"
    command(content)
    assert {r.fallback for r in command.records()} == {"", "no CUDA device"}


def test_present_code_is_what_was_measured(written: Json) -> None:
    assert of_ours(written)["code_hash"] == registry.get("batch_norm").code_hash()
