"""The W&B sink, against the real client: offline runs read back, online ones on a stub server."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from example_records import make_record
from tracking_server import stub_server

from normbench import tracking
from normbench.cells import Record
from normbench.tracking import NullSink, TrackingError, WandbSink, open_sink


@pytest.fixture(autouse=True)
def _no_wandb_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no settings and no state of W&B's from outside the test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def log(sink: WandbSink, *records: Record) -> None:
    for record in records:
        sink.write(record)
    sink.close()


def inspect(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What W&B's own reader finds in the only offline run under `folder`."""
    (run,) = folder.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    if "--summary" in options:
        return [json.loads(done.stdout)]
    return [json.loads(line) for line in done.stdout.splitlines()]


# W&B leaves empty mappings out, so none is empty here.
FILLED: dict[str, Any] = {"model_args": {"width": 16}, "dataset_args": {"train_samples": 100}}


def among(names: Iterable[str], found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}


def test_an_offline_run_holds_the_record(tmp_path: Path) -> None:
    record = make_record(**FILLED)
    sink = WandbSink("offline", tmp_path)
    log(sink, record)
    assert sink.problems == []
    (run,) = inspect(tmp_path, "--summary")
    assert (run["run_id"], run["project"], run["state"]) == (
        record.record_id, "normbench", "finished",
    )  # fmt: skip
    assert set(run["tags"]) == {
        "batch_norm", "nb_resnet10_1x1", "embedded:mnist", "ok", "cpu-1-thread",
    }  # fmt: skip
    assert among(record.metrics, run["summary"]) == record.metrics
    assert run["summary"]["status"] == "ok"
    assert among(record.cell.to_json(), run["config"]) == record.cell.to_json()
    assert run["config"]["environment"] == record.environment
    assert run["config"]["cell_id"] == record.cell_id


def test_an_offline_run_holds_group_job_type_and_curve(tmp_path: Path) -> None:
    log(WandbSink("offline", tmp_path), make_record())
    entries = inspect(tmp_path)
    (run,) = [entry["run"] for entry in entries if entry["type"] == "run"]
    rows = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    assert (run["run_group"], run["job_type"]) == ("small-batch", "accuracy")
    assert [(row["curve/step"], row["curve/train_loss"]) for row in rows] == [
        (100, 0.5), (300, 0.25),
    ]  # fmt: skip
    (metric,) = [entry["metric"] for entry in entries if entry["type"] == "metric"]
    assert (metric["glob_name"], metric["step_metric"]) == ("curve/*", "curve/step")


def test_a_failure_of_the_cell_is_logged_like_a_result(tmp_path: Path) -> None:
    record = make_record(None, status="diverged", reason="the loss was NaN at step 7")
    log(WandbSink("offline", tmp_path), record)
    (run,) = inspect(tmp_path, "--summary")
    assert run["summary"]["status"] == "diverged"
    assert run["summary"]["reason"] == "the loss was NaN at step 7"


def test_the_same_record_may_be_logged_again(tmp_path: Path) -> None:
    for _ in range(2):
        sink = WandbSink("offline", tmp_path)
        log(sink, make_record(), make_record())
        assert sink.problems == []
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 4


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log(WandbSink("offline", tmp_path), make_record())
    assert capfd.readouterr() == ("", "")


def test_a_users_own_run_is_left_alone(tmp_path: Path) -> None:
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    own = wandb.init(mode="offline", dir=str(tmp_path / "own"), settings=settings)
    log(WandbSink("offline", tmp_path / "ours"), make_record())
    assert wandb.run is own
    assert "test_accuracy" not in dict(own.summary)
    own.finish()


def test_the_online_client_delivers_config_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    records = [make_record(seed=seed, **FILLED) for seed in range(3)]
    with stub_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        sink = open_sink(None, tmp_path)
        assert isinstance(sink, WandbSink)
        assert sink.mode == "online"
        log(sink, *records)
    assert sink.problems == []
    assert capfd.readouterr() == ("", "")
    for record in records:
        sent = server.runs[record.record_id]
        config = {name: entry["value"] for name, entry in json.loads(sent["config"]).items()}
        assert among(record.cell.to_json(), config) == record.cell.to_json()
        assert (sent["groupName"], sent["jobType"]) == ("small-batch", "accuracy")
        assert [row["curve/train_loss"] for row in server.rows[record.record_id]] == [0.5, 0.25]
        assert server.summaries[record.record_id]["test_accuracy"] == 0.948


@pytest.mark.parametrize("kind", ["dead", "all requests fail"])
def test_a_failing_server_costs_a_sentence_each_and_then_the_sink(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub_server(failing="/") as server:
        url = server.url
        if kind == "dead":
            server.shutdown()
            server.server_close()
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        records = [make_record(seed=seed) for seed in range(5)]
        sink = WandbSink("online", tmp_path, init_timeout=0.5)
        log(sink, *records)
    *failures, note = sink.problems
    assert len(failures) == tracking.PATIENCE
    assert all(record.record_id in text for record, text in zip(records, failures, strict=False))
    assert "off for the rest of this run" in note


def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where the folder should be")
    sink = WandbSink("offline", tmp_path)
    log(sink, make_record())
    assert len(sink.problems) == 1
    assert "FileExistsError" in sink.problems[0]


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))
    sink = WandbSink("offline", tmp_path)
    log(sink, make_record())
    assert len(sink.problems) == 1
    assert "No space left on device" in sink.problems[0]


class _SlowWandb(types.ModuleType):
    """Stands in for a client whose `init` hangs longer than anyone wants to wait."""

    def __init__(self, seconds: float, failing: frozenset[int] = frozenset()) -> None:
        super().__init__("wandb")
        self.seconds, self.failing, self.calls = seconds, failing, 0

    def init(self, **_options: Any) -> Any:
        self.calls += 1
        time.sleep(self.seconds)
        if self.calls in self.failing:
            raise OSError(28, "No space left on device")
        return _NoRun()


class _NoRun:
    summary: dict[str, Any] = {}  # noqa: RUF012 - nobody reads it

    def define_metric(self, *_args: Any, **_options: Any) -> None: ...
    def log(self, _row: Any) -> None: ...
    def finish(self, exit_code: int) -> None: ...


def slow_sink(monkeypatch: pytest.MonkeyPatch, wandb: _SlowWandb, **options: Any) -> WandbSink:
    monkeypatch.setattr(tracking, "_import_wandb", lambda _mode: wandb)
    monkeypatch.setattr(tracking, "_settings", lambda *_args: None)
    return WandbSink("offline", **options)


def test_a_hanging_client_holds_up_neither_write_nor_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = slow_sink(monkeypatch, _SlowWandb(1.0), folder=tmp_path, close_timeout=0.1)
    start = time.monotonic()
    log(sink, make_record(seed=0), make_record(seed=1))
    assert time.monotonic() - start < 0.9
    assert "2 runs may be missing" in sink.problems[0]


def test_a_failure_now_and_then_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _SlowWandb(0.0, failing=frozenset({1, 2, 4, 5}))
    sink = slow_sink(monkeypatch, client, folder=tmp_path)
    log(sink, *(make_record(seed=seed) for seed in range(6)))
    assert client.calls == 6
    assert len(sink.problems) == 4
    assert "No space left on device" in sink.problems[0]


def test_close_may_be_called_twice_and_without_a_write(tmp_path: Path) -> None:
    sink = WandbSink("offline", tmp_path)
    sink.close()
    sink.close()
    assert sink.problems == []
    assert not (tmp_path / "wandb").exists()


def test_without_a_key_the_default_is_offline(tmp_path: Path) -> None:
    sink = open_sink(None, tmp_path)
    assert isinstance(sink, WandbSink)
    assert sink.mode == "offline"


@pytest.mark.parametrize(("host", "mode"), [("127.0.0.1", "online"), ("elsewhere", "offline")])
def test_a_netrc_entry_of_the_server_is_a_key(
    host: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'k' * 40}\n")
    sink = open_sink(None, tmp_path)
    assert isinstance(sink, WandbSink)
    assert sink.mode == mode


@pytest.mark.parametrize("mode", ["disabled", None])
def test_disabled_means_nothing(
    mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(open_sink(mode, tmp_path), NullSink)


def test_online_without_a_key_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="wandb login"):
        open_sink("online", tmp_path)


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="expected offline, online, disabled"):
        open_sink("ofline", tmp_path)


def test_the_curve_falls_back_to_epoch_and_position() -> None:
    record = dataclasses.replace(make_record(), curve=({"epoch": 4, "a": 1.0}, {"a": 2.0}))
    assert [row["curve/step"] for row in tracking.history(record)] == [4, 2]


def test_config_has_no_nan_and_summary_keeps_it() -> None:
    record = dataclasses.replace(make_record(), metrics={"test_loss": math.nan})
    assert math.isnan(tracking.run_summary(record)["test_loss"])
    json.dumps(tracking.run_config(record), allow_nan=False)


def test_tags_keep_to_the_services_limit() -> None:
    tags = tracking.run_tags(make_record(dataset="hf:" + "x" * 100, hardware_class="nvidia"))
    assert max(map(len, tags)) == 64
