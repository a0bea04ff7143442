"""The worker's end of a supervised process (pool.py): take a cell, run it, send its record."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from normbench.engine.execute import execute

PROGRESS_SECONDS = 0.2
"""Progress is told at most this often: a task may report after every step."""


@dataclass(frozen=True)
class Setup:
    """How cells are run.

    Attributes:
        device: where.
        threads: CPU threads torch may use, per process.
        submitter: who measures.
        imports: modules a worker must load, those that hold methods and tasks of plugins.
    """

    device: torch.device
    threads: int
    submitter: str
    imports: tuple[str, ...] = ()


def serve(connection: Connection[Any, Any], setup: Setup, log: str) -> None:
    """Main function of a worker process: `("ready", None)`, then a record for every cell taken.

    A cell that leaves the process unfit for another says `("spoilt", None)` before its record.

    Ends when the driver closes the connection, and at once when the driver dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    _redirect_output(log)
    faulthandler.enable()
    threading.Thread(target=end_with_driver, name="end-with-driver", daemon=True).start()
    for name in setup.imports:
        importlib.import_module(name)
    gc.freeze()  # what is loaded by now is never garbage, so collections need not walk it
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(("ready", None))
        while True:
            cell = connection.recv()
            record = execute(
                cell, device=setup.device, threads=setup.threads, submitter=setup.submitter,
                progress=throttled(lambda fraction: connection.send(("progress", fraction))),
                spoilt=lambda: connection.send(("spoilt", None)),
            )  # fmt: skip
            connection.send(("record", record))


def throttled(notify: Callable[[float], None]) -> Callable[[float], None]:
    """The same function, called at most once in `PROGRESS_SECONDS`."""
    last = -PROGRESS_SECONDS

    def now_and_then(fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            notify(fraction)

    return now_and_then


def _redirect_output(log: str) -> None:
    """Send what cells print to a file: it would spoil the driver's display and output.

    The file's end goes into the record if the process dies.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def end_with_driver() -> None:
    """Die with the driver, however it dies: the kernel closes its end of this pipe."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        wait([driver.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
