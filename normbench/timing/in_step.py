"""Two processes that do the same in step, so that what they say to each other can be timed.

This process is the first; it starts the second (follower.py), tells it before every piece of work
which one is next, and meets it at a barrier, so that neither waits for the other within the time.
gloo carries it between processes on a CPU, NCCL between two CUDA devices.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from normbench.cells import Cell
from normbench.timing.layers import Contest, works

PROCESSES = 2
PATIENCE = 300.0
"""Seconds that one process waits for the other."""

POLL_SECONDS = 0.02
READY = "ready"
"""The file that the second process leaves when it has started."""

END = -1


class InStepError(RuntimeError):
    """The other process failed, or this one cannot have one, with the reason."""


class Group(Contest):
    """One of the two processes: both have the same contestants in the same order."""

    def next(self, number: int = END) -> int:
        """What the first process gives as `number`, then a barrier."""
        told = torch.tensor([number], device=self.device)
        dist.broadcast(told, src=0)
        dist.barrier()
        return int(told)

    def lead(self, name: str) -> None:
        """Tell the other process to do this work, and be where it is."""
        self.next(self.names.index(name))

    def follow(self) -> None:
        """Do what the first process tells, until it tells to end."""
        while (number := self.next()) != END:
            self.work(self.names[number])


@contextlib.contextmanager
def in_step(cell: Cell, device: torch.device) -> Iterator[Group]:
    """The first of two processes for a cell; the second ends with the context.

    Raises:
        InStepError: if this process is in a group already, there are too few CUDA devices, or the
            second process fails, with its last line.
    """
    if dist.is_initialized():
        raise InStepError("this process is in a group of torch.distributed already")
    if device.type == "cuda" and torch.cuda.device_count() < PROCESSES:
        raise InStepError(f"NCCL needs {PROCESSES} CUDA devices, there is one: name the CPU")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with _follower(cell, device, Path(folder), log) as process:
            _wait(process, Path(folder, READY), log)
            try:
                yield from _led(cell, device, Path(folder))
            except RuntimeError as error:  # what gloo and NCCL raise where the other is gone
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=2)
                if not process.returncode:
                    raise
                raise InStepError(f"the second process failed: {_last_line(log)}") from error


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
    """Until the second process has started: a group would wait for one that has ended, too."""
    deadline = time.monotonic() + PATIENCE
    while not ready.exists():
        if process.poll() is not None:
            raise InStepError(f"the second process failed: {_last_line(log)}")
        if time.monotonic() > deadline:
            raise InStepError(f"the second process did not start in {PATIENCE:g} s")
        time.sleep(POLL_SECONDS)


def _led(cell: Cell, device: torch.device, folder: Path) -> Iterator[Group]:
    with joined(cell, device, folder, rank=0) as group:
        yield group
        group.next(END)


@contextlib.contextmanager
def joined(cell: Cell, device: torch.device, folder: Path, rank: int) -> Iterator[Group]:
    """This process in the group, its contestants built."""
    backend = "gloo"
    if device.type == "cuda":
        backend, device = "nccl", torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{folder / 'store'}", rank=rank, world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )  # fmt: skip
    try:
        yield Group(device, {name: make() for name, make in works(cell, device).items()})
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _follower(
    cell: Cell, device: torch.device, folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The second process; killed if it is still there at the end."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    command = [
        sys.executable, "-P", "-m", "normbench.timing.follower", json.dumps(cell.to_json()),
        device.type, str(folder),
    ]  # fmt: skip
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=output,
            stderr=output,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
            process.wait(timeout=PATIENCE)
        finally:
            process.kill()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
