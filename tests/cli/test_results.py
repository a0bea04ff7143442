"""`normbench results`: what is shown, what is refused, what each exit code means."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from example_records import make_record, make_timed

from normbench import cli, stats
from normbench.store import Store

ACCURACIES = [0.945, 0.948, 0.951]


@dataclass
class Ran:
    code: int
    out: str
    err: str


class Results:
    """Runs the command on one folder, in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.store = Store(folder)

    def __call__(self, *arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            cli.main(["results", "--results", str(self.folder), *arguments])
        out, err = self.capsys.readouterr()
        return Ran(int(left.value.code or 0), out, err)


@pytest.fixture
def empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Results:
    return Results(tmp_path / "records", capsys)


@pytest.fixture
def results(empty: Results) -> Results:
    """Two variants at two batch sizes, three seeds; one variant diverged at batch 2."""
    for seed, accuracy in enumerate(ACCURACIES):
        for size in (2, 8):
            empty.store.append(make_record(accuracy, seed=seed, batch_size=size))
        empty.store.append(make_record(accuracy - 0.1, seed=seed, batch_size=8, method="none"))
        diverged = make_record(None, seed=seed, batch_size=2, method="none", status="diverged")
        empty.store.append(dataclasses.replace(diverged, reason="the loss was NaN"))
    return empty


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_has_a_row_per_record_and_fits_the_terminal(results: Results) -> None:
    lines = results().out.splitlines()
    assert sum("none" in line or "batch_norm" in line for line in lines) == 12
    assert max(map(len, lines)) <= 120
    assert lines[0] == "suite: small-batch  model: nb_resnet10_1x1  dataset: embedded:mnist"


def test_csv_has_every_value_in_full(results: Results) -> None:
    found = rows(results("--format", "csv").out)
    assert len(found) == 12
    assert {row["test_accuracy"] for row in found if row["method"] == "batch_norm"} == {
        str(value) for value in ACCURACIES
    }


def test_csv_has_nested_columns_as_json(results: Results) -> None:
    ran = results("--format", "csv", "--columns", "seed,samples,curve")
    assert (ran.code, ran.err) == (0, "")
    for row in rows(ran.out):
        assert isinstance(json.loads(row["samples"] or "[]"), list)
        assert isinstance(json.loads(row["curve"] or "[]"), list)


def test_json_has_nested_fields_as_such(results: Results) -> None:
    ran = results("--format", "json", "--columns", "seed,params,curve", "--filter", "seed=1")
    found = json.loads(ran.out)
    assert found[0]["params"] == {"eps": 1e-5}
    assert found[0]["curve"][0] == {"step": 100, "train_loss": 0.5}


def test_json_has_null_for_a_metric_that_is_missing(results: Results) -> None:
    ran = results("--format", "json", "--status", "diverged")
    assert {row["test_accuracy"] for row in json.loads(ran.out)} == {None}


def test_parquet_goes_to_a_file_named_by_its_ending(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    assert results("--out", str(path)).code == 0
    assert pl.read_parquet(path)["test_accuracy"].drop_nulls().max() == max(ACCURACIES)


def test_filters_of_one_key_are_alternatives_and_of_two_keys_conditions(results: Results) -> None:
    ran = results(
        "--format", "csv", "--filter", "seed=0", "--filter", "seed=2", "--filter", "batch_size=8"
    )
    found = rows(ran.out)
    assert {(row["seed"], row["batch_size"]) for row in found} == {("0", "8"), ("2", "8")}


def test_status_selects(results: Results) -> None:
    assert {row["status"] for row in rows(results("--format", "csv", "--status", "ok").out)} == {
        "ok"
    }


def test_sorting_descends_with_a_minus_and_puts_missing_values_last(results: Results) -> None:
    found = rows(results("--format", "csv", "--sort", "-test_accuracy").out)
    values = [row["test_accuracy"] for row in found]
    assert values[0] == "0.951"
    assert values[-3:] == [""] * 3


def test_columns_and_metrics_are_chosen(results: Results) -> None:
    ran = results("--format", "csv", "--columns", "seed,variant", "--metric", "test_loss")
    assert ran.out.splitlines()[0] == "seed,variant,test_loss"


def test_a_group_has_the_t_interval_over_seeds(results: Results) -> None:
    ran = results("--group", "variant,batch_size", "--format", "csv")
    (row,) = [r for r in rows(ran.out) if (r["variant"], r["batch_size"]) == ("batch_norm", "2")]
    wanted = stats.t_interval(ACCURACIES)
    assert float(row["test_accuracy_low"]) == pytest.approx(wanted.low)
    assert float(row["test_accuracy_high"]) == pytest.approx(wanted.high)
    assert row["test_accuracy_n"] == "3"


def test_a_group_is_never_a_naked_mean(results: Results) -> None:
    ran = results("--group", "variant,batch_size")
    assert ran.out.count("0.948 ±0.007 (n=3)") == 2
    assert "diverged 3/3" in ran.out


def test_pooling_over_cells_is_averaged_within_seeds_and_said(results: Results) -> None:
    ran = results("--group", "method", "--filter", "method=batch_norm")
    assert "(n=3)" in ran.out
    assert "differ in batch_size" in ran.err


def test_seeds_with_unlike_sets_of_cells_are_said(results: Results) -> None:
    results.store.append(make_record(0.9, seed=0, batch_size=32))
    assert "unlike sets of cells" in results("--group", "method").err


@pytest.mark.parametrize(
    ("change", "column"),
    [({"hardware_class": "h200"}, "hardware_class"), ({"precision": "bf16"}, "precision"),
     ({"config": {"lr": 0.5}}, "settings"), ({"code_hash": "older"}, "code_hash"),
     ({"data_fingerprint": "changed"}, "data_fingerprint")],
)  # fmt: skip
def test_what_cannot_be_compared_splits_a_group(
    results: Results, change: dict[str, object], column: str
) -> None:
    results.store.append(make_record(0.1, seed=7, batch_size=2, **change))  # type: ignore[arg-type]
    found = rows(results("--group", "variant,batch_size", "--format", "csv").out)
    split = [r for r in found if (r["variant"], r["batch_size"]) == ("batch_norm", "2")]
    assert len({r[column] for r in split}) == 2
    assert {r["test_accuracy_n"] for r in split} == {"1", "3"}


def test_methods_with_code_of_their_own_may_be_averaged_over(results: Results) -> None:
    results.store.append(make_record(0.9, seed=0, batch_size=2, method="lean", code_hash="lean"))
    header = results("--group", "model", "--format", "csv").out.splitlines()[0]
    assert "code_hash" not in header


def test_data_sets_of_their_own_may_be_averaged_over(results: Results) -> None:
    other = make_record(0.9, seed=0, batch_size=2, dataset="embedded:x", data_fingerprint="other")
    results.store.append(other)
    header = results("--group", "variant,batch_size", "--format", "csv").out.splitlines()[0]
    assert "data_fingerprint" not in header


def test_older_records_of_a_cell_are_left_out_of_groups_and_counted(results: Results) -> None:
    old = make_record(0.1, seed=0, code_hash="before", started_at="2025-01-01T00:00:00+00:00")
    results.store.append(old)
    ran = results("--group", "variant,batch_size")
    assert ran.out.count("0.948 ±0.007 (n=3)") == 2
    assert "1 older record of the same cells left out" in ran.err


def test_where_prints_the_files(results: Results) -> None:
    paths = [Path(line) for line in results("--where").out.splitlines()]
    assert len(paths) == 12
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--filter", "batch_siz=2"], "unknown column 'batch_siz'; did you mean 'batch_size'?"),
     (["--filter", "seed"], "filter 'seed' is not KEY=VALUE"),
     (["--filter", "seed=two"], "'two' is not a whole number"),
     (["--columns", "varian"], "did you mean 'variant'?"),
     (["--metric", "test_acuracy"], "did you mean 'test_accuracy'?"),
     (["--group", "modle"], "did you mean 'model'?"),
     (["--sort", "sed"], "did you mean 'seed'?"),
     (["--status", "divergd"], "did you mean 'diverged'?"),
     (["--group", "model", "--columns", "seed"], "exclude each other"),
     (["--format", "xml"], "xml")],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_exit_code_2(
    results: Results, arguments: list[str], sentence: str
) -> None:
    ran = results(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("arguments", [[], ["--where"], ["--group", "method"]])
def test_no_records_say_how_to_make_some(empty: Results, arguments: list[str]) -> None:
    ran = empty(*arguments)
    assert ran.code == 1
    assert "normbench run" in ran.err


def test_no_match_names_the_values_that_exist(results: Results) -> None:
    ran = results("--filter", "batch_size=3")
    assert ran.code == 1
    assert "batch_size: 2, 8" in ran.err


def test_a_damaged_file_is_named_and_the_good_are_shown(results: Results) -> None:
    damaged = results.store.paths()[0]
    damaged.write_text("{")
    ran = results("--format", "csv")
    assert ran.code == 0
    assert len(rows(ran.out)) == 11
    assert f"Warning: {damaged}" in ran.err
    assert damaged.exists()


def test_an_output_path_that_does_not_exist_is_a_mistake(results: Results, tmp_path: Path) -> None:
    ran = results("--out", str(tmp_path / "missing" / "x.csv"))
    assert ran.code == 2
    assert "missing" in ran.err


def test_a_reader_that_stops_early_is_no_error(results: Results) -> None:
    for seed in range(20):  # more than a pipe holds
        results.store.append(make_record(seed=100 + seed, suite="x" * 20_000))
    command = [sys.executable, "-m", "normbench", "results", "--results", str(results.folder)]
    with subprocess.Popen(
        [*command, "--format", "csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_main_metric_is_that_of_the_tasks_found(results: Results) -> None:
    results.store.append(make_timed())
    for task, shown, absent in (
        ("throughput", "ratio", "test_accuracy"),
        ("accuracy", "test_accuracy", "ratio"),
    ):
        header = results("--filter", f"task={task}", "--filter", "method=batch_norm").out
        (columns,) = [
            line for line in header.splitlines() if line.startswith(("variant", "suite  "))
        ]
        assert shown in columns.split()
        assert absent not in columns.split()
    assert {"test_accuracy", "ratio"} <= set(results("--filter", "batch_size=2").out.split())
