"""Weights & Biases: finished records mirrored as runs, one run per record.

The driver writes to a sink after it has stored the record, never a worker: a cell's clock does
not see W&B, and a run that is killed loses no result, for the store is the source of truth and
W&B only its mirror. For the same reason nothing here raises once a sink is open; what goes wrong
is collected in `problems`.

A run takes 20 ms offline, 0.2 s online and up to the time-out where a server is dead, so the
sink works through a queue in one background thread: the driver hands over a record in
microseconds and goes on feeding its workers. `close` waits for the queue, for a bounded time.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import netrc
import os
import queue
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args
from urllib.parse import urlsplit

from normbench.cells import Record

Mode = Literal["offline", "online", "disabled"]
MODES: tuple[Mode, ...] = get_args(Mode)

PATIENCE = 3
"""Failures in a row after which a sink gives up."""

_OLD_NAMES = {"dryrun": "offline", "run": "online"}  # what WANDB_MODE may still say
_TAG_LENGTH = 64  # the service refuses longer tags
_NAME_LENGTH = 128
_ROOM_BYTES = 10_000_000  # a run takes about 50 kB
_FINISH_SECONDS = 30.0


class TrackingError(ValueError):
    """A mode that does not exist or cannot work, found before anything is measured."""


class Sink(Protocol):
    """Where the driver sends finished records besides the store."""

    @property
    def problems(self) -> list[str]:
        """What went wrong so far, one sentence each."""

    def write(self, record: Record) -> None:
        """Take a finished record. Returns at once and never raises."""

    def close(self) -> None:
        """Finish what was taken, within a bounded time. Never raises; may be called twice."""


class NullSink:
    """The sink of those who want none."""

    @property
    def problems(self) -> list[str]:
        """Always empty."""
        return []

    def write(self, record: Record) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_sink(mode: str | None, folder: str | os.PathLike[str]) -> Sink:
    """The W&B sink a user asked for, or the one that fits their machine.

    Args:
        mode: `offline`, `online` or `disabled`. None takes WANDB_MODE, and where that is unset
            `online` if there is an API key (WANDB_API_KEY or a netrc entry), else `offline`.
        folder: W&B's files go to `folder/wandb`.

    Raises:
        TrackingError: for an unknown mode, or `online` without a key.
    """
    if mode is None:
        asked = os.environ.get("WANDB_MODE", "")
        mode = _OLD_NAMES.get(asked, asked) or ("online" if has_key() else "offline")
    if mode not in MODES:
        raise TrackingError(f"W&B mode {mode!r} does not exist; expected {', '.join(MODES)}")
    if mode == "disabled":
        return NullSink()
    if mode == "online" and not has_key():  # W&B would ask for it, in the middle of a run
        raise TrackingError(
            "W&B mode is online, but there is no API key: run `wandb login`, set WANDB_API_KEY, "
            "or use the mode offline and `wandb sync` later"
        )
    return WandbSink(cast(Mode, mode), folder)


def has_key() -> bool:
    """Whether W&B would find credentials. Imports wandb only where there is a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    candidates = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    found = [path for name in candidates if name and (path := Path(name).expanduser()).is_file()]
    if not found:
        return False
    wandb: Any = importlib.import_module("wandb")
    host = urlsplit(wandb.setup().settings.base_url).hostname or ""
    try:
        return netrc.netrc(found[0]).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):  # unreadable for us is unreadable for W&B
        return False


class WandbSink:
    """Mirrors records as W&B runs, from a background thread.

    A run's id is the record's: measuring a cell again on the same machine replaces its run, while
    another machine's run of the same cell stays beside it.

    Args:
        mode: `offline` writes files for `wandb sync`, `online` uploads, `disabled` does nothing.
        folder: W&B's files go to `folder/wandb`.
        project: the W&B project.
        init_timeout: seconds a server may take to accept a run.
        close_timeout: seconds `close` waits for what is queued.
    """

    def __init__(
        self,
        mode: Mode,
        folder: str | os.PathLike[str],
        project: str = "normbench",
        *,
        init_timeout: float = 10.0,
        close_timeout: float = 60.0,
    ) -> None:
        self.mode: Mode = mode
        self.folder = Path(folder)
        self.project = project
        self.init_timeout = init_timeout
        self.close_timeout = close_timeout
        self._problems: list[str] = []
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending = 0  # taken, not yet written; the thread counts down, `write` up
        self._lock = threading.Lock()
        self._given_up = False
        self._wandb: Any = None

    @property
    def problems(self) -> list[str]:
        """What went wrong so far, one sentence each."""
        return list(self._problems)

    def write(self, record: Record) -> None:
        """Queue a finished record. Returns at once and never raises."""
        if self.mode == "disabled" or self._given_up:
            return
        if self._thread is None:
            # A daemon: a hung upload must not keep the program from ending.
            self._thread = threading.Thread(target=self._work, name="wandb-sink", daemon=True)
            self._thread.start()
        with self._lock:
            self._pending += 1
        self._queue.put(record)

    def close(self) -> None:
        """Wait for the queue, at most `close_timeout` seconds. Never raises."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._queue.put(None)
        thread.join(self.close_timeout)
        if thread.is_alive():
            self._given_up = True
            self._problems.append(
                f"W&B did not finish within {self.close_timeout:g} s, so {self._pending} runs may "
                "be missing there; the records are safe in the results folder"
            )

    def _work(self) -> None:
        failures = 0
        while (record := self._queue.get()) is not None:
            if not self._given_up:
                failures = 0 if self._try_to_log(record) else failures + 1
            if failures == PATIENCE and not self._given_up:
                self._given_up = True
                self._problems.append(
                    f"W&B failed {PATIENCE} times in a row and is off for the rest of this run; "
                    "the records are safe in the results folder"
                )
            with self._lock:
                self._pending -= 1

    def _try_to_log(self, record: Record) -> bool:
        try:
            self._log(record)
        except (Exception, SystemExit) as error:  # whatever W&B does, the benchmark goes on
            first_line = (str(error).splitlines() or [""])[0].rstrip(". ")
            self._problems.append(
                f"W&B has no run for record {record.record_id}: "
                f"{type(error).__name__}: {first_line}"
            )
            return False
        return True

    def _log(self, record: Record) -> None:
        if self._wandb is None:
            self._wandb = _import_wandb(self.mode)
        _make_room(self.folder / "wandb")
        run = self._wandb.init(
            project=self.project,
            dir=str(self.folder),
            id=record.record_id,
            name=_run_name(record),
            group=record.cell.suite,
            job_type=record.cell.task,
            tags=run_tags(record),
            config=run_config(record),
            settings=_settings(self._wandb, self.mode, self.init_timeout),
        )
        try:
            run.define_metric("curve/*", step_metric="curve/step")
            for row in history(record):
                run.log(row)
            run.summary.update(run_summary(record))
        except BaseException:
            with contextlib.suppress(Exception):  # the failure that counts is the one on its way
                run.finish(exit_code=1)
            raise
        run.finish(exit_code=1 if record.status in ("error", "timeout") else 0)


def run_tags(record: Record) -> list[str]:
    """Method, model, dataset, status and hardware class, for filtering."""
    cell = record.cell
    tags = (cell.method, cell.model, cell.dataset, record.status, record.hardware_class)
    return list(dict.fromkeys(tag[:_TAG_LENGTH] for tag in tags if tag))


def run_config(record: Record) -> dict[str, Any]:
    """The resolved configuration, and what identifies and surrounds the measurement."""
    plain = record.to_json()
    about = ("record_id", "cell_id", "code_hash", "protocol", "hardware_class", "submitter",
             "started_at", "environment", "slots", "fallback")  # fmt: skip
    return {**plain["cell"], **{name: plain[name] for name in about}}


def run_summary(record: Record) -> dict[str, Any]:
    """Every metric under its own name, with status and reason."""
    return {
        **record.metrics,
        "status": record.status,
        "reason": record.reason,
        "wall_seconds": record.wall_seconds,
        "trials": len(record.trials),
        "notes": list(record.notes),
    }


def history(record: Record) -> list[dict[str, float]]:
    """The curve's rows as `curve/…`, so that they never shadow a final metric of their name.

    `curve/step` is the x axis: the row's own `step` or `epoch`, or its position.
    """
    return [
        {f"curve/{name}": value for name, value in {"step": _step(row, position), **row}.items()}
        for position, row in enumerate(record.curve, start=1)
    ]


def _step(row: Mapping[str, float], position: int) -> float:
    value = row.get("step", row.get("epoch"))
    return position if value is None or not math.isfinite(value) else value


def _run_name(record: Record) -> str:
    cell = record.cell
    name = f"{cell.variant} {cell.model} batch {cell.batch_size} seed {cell.seed}"
    return name[:_NAME_LENGTH]


def _make_room(folder: Path) -> None:
    """Make the folder and check that it takes files, since W&B does neither in a way that tells.

    It falls back to a temporary folder with no more than a print, and on a full disk leaves empty
    files and fills the console with tracebacks of its logger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    if shutil.disk_usage(folder).free < _ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _import_wandb(mode: Mode) -> Any:
    if mode == "offline":
        # W&B reports crashes of its own to its makers even offline; offline should mean that
        # nothing leaves the machine. A user's own setting wins.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb: Any = importlib.import_module("wandb")
    if wandb.run is None:  # else the console is that of a user who logs runs of their own
        wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def _settings(wandb: Any, mode: Mode, init_timeout: float) -> Any:
    """Settings of one run: silent, unattended, and nothing recorded but what we send.

    The machine and the code belong to the worker, possibly elsewhere; the record has them, so
    W&B's look at the driver's is switched off. That also makes a run ten times faster.
    """
    needed = {"mode": mode, "silent": True, "console": "off", "init_timeout": init_timeout}
    wished = {
        # Neither touch nor join a run that the user has open in this process.
        "reinit": "create_new",
        # After this long `finish` gives up, and says so by an exception instead of a print.
        "finish_timeout": _FINISH_SECONDS,
        "finish_timeout_raises": True,
        "disable_git": True,
        "disable_code": True,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    # Names beginning with x_ are W&B's to change: what this version lacks is left out.
    known = wandb.Settings.model_fields
    return wandb.Settings(**needed, **{k: v for k, v in wished.items() if k in known})
