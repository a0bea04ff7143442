"""`normbench run` end to end on real digits: what is measured, skipped and refused."""

from __future__ import annotations

import errno
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from normbench import cli, spool
from normbench.store import Store

SUITE = """
name: tiny
question: Does the road from a suite to records hold?
task: accuracy
methods: [batch_norm, group_norm]
models: [nb_resnet10_1x1]
datasets: [embedded:digits]
batch_sizes: [8]
seeds: [0]
training: {samples: 64, evaluations: 1}
min_steps: 4
"""


@dataclass
class Ran:
    code: int
    out: str
    err: str


class Runner:
    """Runs the command in this process, cells included, in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.results = folder / "results"

    def __call__(self, suite: str = SUITE, *options: str) -> Ran:
        path = self.folder / "suite.yaml"
        path.write_text(textwrap.dedent(suite))
        fixed = ("--out", str(self.results), "--workers", "0", "--device", "cpu")
        with pytest.raises(SystemExit) as left:
            cli.main(["run", str(path), *fixed, "--wandb", "disabled", *options])
        out, err = self.capsys.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    def statuses(self) -> dict[str, str]:
        return {r.cell.variant: r.status for r in Store(self.results).records()}


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, capsys)


def test_measures_every_cell_and_shows_a_table(runner: Runner) -> None:
    ran = runner()
    assert ran.code == 0
    assert runner.statuses() == {"batch_norm": "ok", "group_norm": "ok"}
    assert "2 cells: 2 ok" in ran.out
    assert "(n=1)" in ran.out
    assert "[2/2]" in ran.err


def test_second_call_runs_nothing_again(runner: Runner) -> None:
    runner()
    before = Store(runner.results).read()
    ran = runner()
    assert ran.code == 0
    assert "2 already measured, 0 to run" in ran.err
    assert Store(runner.results).read().equals(before)


def test_a_suite_that_grew_runs_only_what_is_new(runner: Runner) -> None:
    runner()
    ran = runner(SUITE.replace("group_norm]", "group_norm, none]"))
    assert "3 cells, 2 already measured, 1 to run" in ran.err
    assert runner.statuses()["none"] == "ok"


def test_dry_run_prints_cells_and_writes_nothing(runner: Runner) -> None:
    ran = runner(SUITE, "--dry-run")
    assert ran.code == 0
    assert "group_norm  nb_resnet10_1x1  embedded:digits  batch 8  seed 0" in ran.out
    assert "2 cells, 2 to run" in ran.out
    assert "cost is not known yet" in ran.out
    assert not runner.results.exists()


def test_dry_run_of_a_committed_suite_is_told_by_the_records_that_ship(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = Path(__file__).parents[2] / "suites" / "small-batch.yaml"
    with pytest.raises(SystemExit) as left:
        cli.main(["run", str(suite), "--out", str(tmp_path), "--device", "cpu", "--dry-run"])
    assert not left.value.code
    assert re.search(
        r"126 cells, 126 to run \(about \d+ min \d\d s by records made elsewhere\)",
        capsys.readouterr().out,
    )


def test_dry_run_expects_what_like_cells_took(runner: Runner) -> None:
    runner()
    ran = runner(SUITE.replace("seeds: [0]", "seeds: [1]"), "--dry-run")
    assert "about" in ran.out


def test_filter_narrows_the_run(runner: Runner) -> None:
    ran = runner(SUITE, "--filter", "method=group_norm")
    assert ran.code == 0
    assert runner.statuses() == {"group_norm": "ok"}


def test_one_value_per_channel_is_unsupported_and_the_rest_runs(runner: Runner) -> None:
    ran = runner(SUITE.replace("batch_sizes: [8]", "batch_sizes: [1]"))
    assert ran.code == 0
    assert runner.statuses() == {"batch_norm": "unsupported", "group_norm": "ok"}
    assert "at least 2 values per channel" in ran.err


def test_nothing_measured_is_not_a_success(runner: Runner) -> None:
    ran = runner(
        SUITE.replace("batch_sizes: [8]", "batch_sizes: [1]"), "--filter", "method=batch_norm"
    )
    assert ran.code == 1
    assert "no cell was measured" in ran.err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("[8]", "[2000]"), "batch of 2000 is larger than the 1100 training samples"),
        (("[nb_resnet10_1x1]", "[test_nfnet.r160_in1k]"), "has no normalization"),
    ],
)
def test_a_cell_that_cannot_be_run_is_an_error_with_a_sentence(
    runner: Runner, change: tuple[str, str], sentence: str
) -> None:
    ran = runner(SUITE.replace(*change))
    assert ran.code == 1
    assert set(runner.statuses().values()) == {"error"}
    assert sentence in ran.err.replace("\n", " ")
    assert "Traceback" not in ran.err


def test_failed_cells_run_again_only_when_asked(runner: Runner) -> None:
    broken = SUITE.replace("[8]", "[2000]")
    runner(broken)
    assert "0 to run" in runner(broken).err
    assert "2 to run" in runner(broken, "--retry-failed").err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("batch_norm,", "bath_norm,"), "batch_norm"),
        (("nb_resnet10_1x1", "resnet81"), "resnet"),
        (("embedded:digits", "embedded:digit"), "embedded:digits"),
        (("[batch_norm, group_norm]", "[]"), "methods"),
    ],
)
def test_a_users_mistake_names_its_place_and_the_nearest_name(
    runner: Runner, change: tuple[str, str], sentence: str
) -> None:
    ran = runner(SUITE.replace(*change))
    assert ran.code == 2
    assert "suite.yaml:" in ran.err
    assert sentence in ran.err
    assert not runner.results.exists()


def test_a_filter_that_fits_nothing_is_refused(runner: Runner) -> None:
    ran = runner(SUITE, "--filter", "method=batch_nrom")
    assert ran.code == 2
    assert "batch_norm" in ran.err


def test_a_missing_suite_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["run", str(tmp_path / "none.yaml")])
    assert left.value.code == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_corrupt_record_is_named_and_the_good_are_kept(runner: Runner) -> None:
    runner(SUITE, "--filter", "method=batch_norm")
    torn = runner.results / "spool" / "torn.json"
    torn.parent.mkdir(exist_ok=True)
    torn.write_text('{"record_id": "ab')
    ran = runner()
    assert ran.code == 0
    assert "torn.json" in ran.err
    assert torn.exists()
    assert runner.statuses() == {"batch_norm": "ok", "group_norm": "ok"}


def test_full_disk_stops_with_a_sentence_and_keeps_what_is_done(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    allowed = 10**6
    runner(SUITE, "--filter", "method=batch_norm")
    monkeypatch.setattr(spool.os, "fsync", full)
    calls, allowed = 0, 0
    ran = runner()
    assert ran.code == 2
    assert "No space left" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.undo()
    assert runner.statuses() == {"batch_norm": "ok"}
    assert not list(runner.results.rglob("*.tmp"))
    assert runner().code == 0  # with space again, the run goes on


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.results = runner.folder / "file" / "results"
    (runner.folder / "file").write_text("in the way")
    ran = runner()
    assert ran.code == 2
    assert "Error: " in ran.err
    assert "file" in ran.err
    assert "[1/2]" not in ran.err


def test_unknown_device_and_wandb_mode_are_refused(runner: Runner) -> None:
    assert "auto, cpu" in runner(SUITE, "--device", "tpu").err
    assert "offline" in runner(SUITE, "--wandb", "sometimes").err


def test_tracking_writes_an_offline_run_for_every_cell(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    ran = runner(SUITE, "--filter", "method=group_norm", "--wandb", "offline")
    assert ran.code == 0
    assert len(list((runner.results / "wandb").glob("offline-run-*"))) == 1


def test_line_display_says_what_is_left(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runner().err.splitlines()
    assert first[0] == "2 cells, 2 to run"
    assert "left, ends about" in first[1]


def test_terminal_display_survives_a_whole_run(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normbench.cli import progress

    shown: list[Any] = []
    display = progress.TerminalDisplay()
    monkeypatch.setattr(progress, "display", lambda: shown.append(display) or display)
    assert runner().code == 0
    assert shown == [display]
