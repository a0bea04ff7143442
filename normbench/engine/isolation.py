"""Calls in processes of their own, under limits of time and memory: a crash costs its call only.

Unlike the pool (pool.py), which keeps its processes for cell after cell, every call here gets a
fresh one: what is called is somebody else's code, and may leave anything behind.
"""

from __future__ import annotations

import collections
import math
import multiprocessing
import os
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, Generic, TypeVar

import torch

from normbench.engine.pool import manner, no_main
from normbench.engine.serve import end_with_driver

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

MEMORY_EXIT = 77
"""Exit code of a process that passed its memory limit."""

LOOK_SECONDS = 0.05
"""How often a process looks at its own memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may take.

    Attributes:
        seconds: wall time.
        gigabytes: resident memory of its process, which is what the machine can run out of;
            address space says nothing, since libraries reserve far more than they use.
        threads: of torch.
    """

    seconds: float = 60.0
    gigabytes: float = 3.0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Lost:
    """A call that brought no value, with the reason in a few words."""

    reason: str


@dataclass(slots=True)
class _Running(Generic[Key]):
    key: Key
    process: ForkServerProcess
    connection: Connection[Any, Any]
    began: float = math.inf  # until its process stands, which takes long where none stood before


def call_each(
    calls: Mapping[Key, tuple[Any, ...]],
    function: Callable[..., Value],
    workers: int,
    limits: Limits,
) -> Iterator[tuple[Key, Value | Lost]]:
    """Call a function once per key, each in a process of its own, in the order in which they end.

    Closing the iterator kills what still runs.

    Args:
        calls: positional arguments by key.
        function: importable by name, as are its arguments and value.
        workers: how many run at a time.
        limits: for each call.
    """
    waiting = collections.deque(calls.items())
    running: list[_Running[Key]] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(*waiting.popleft(), function, limits))
            left = min(run.began for run in running) + limits.seconds - time.monotonic()
            wait([run.connection for run in running], min(max(left, 0.0), 60.0))
            for run in list(running):
                if (ended := _look(run, limits)) is not None:
                    running.remove(run)
                    _end(run)
                    yield run.key, ended[0]
    finally:
        for run in running:
            _end(run)


def _start(
    key: Key, arguments: tuple[Any, ...], function: Callable[..., Any], limits: Limits
) -> _Running[Key]:
    context = multiprocessing.get_context("forkserver")
    # Has an effect once per program, before the first process; the others import what is missing.
    context.set_forkserver_preload(["torch", "timm", function.__module__, __name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_serve, args=(theirs, function, arguments, limits), name="normbench-call"
    )
    with no_main():
        process.start()
    theirs.close()
    return _Running(key, process, ours)


def _look(run: _Running[Key], limits: Limits) -> tuple[Any] | None:
    """What became of a call, in a tuple; None while it runs."""
    try:
        if run.connection.poll():
            message: tuple[Any, ...] = run.connection.recv()
            if message:
                return message
            run.began = time.monotonic()
    except (EOFError, OSError):
        run.process.join(10.0)
        if run.process.exitcode == MEMORY_EXIT:
            return (Lost(f"takes more than {limits.gigabytes:g} GB of memory"),)
        return (Lost(f"its process died: {manner(run.process.exitcode)}"),)
    if time.monotonic() - run.began >= limits.seconds:
        return (Lost(f"takes more than {limits.seconds:g} s"),)
    return None


def _end(run: _Running[Any]) -> None:
    run.process.kill()
    run.process.join()
    run.connection.close()


def _serve(
    connection: Connection[Any, Any],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    limits: Limits,
) -> None:
    """Main function of the process: silent, watched, gone with its driver."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    for watch in (end_with_driver, lambda: _end_with_memory(limits.gigabytes)):
        threading.Thread(target=watch, daemon=True).start()
    # Nobody could read them, and PYTHONWARNINGS=error must not end the call.
    warnings.simplefilter("ignore")
    torch.set_num_threads(limits.threads)
    connection.send(())
    try:
        value = function(*arguments)
    except Exception as error:
        value = Lost(" ".join(str(error).split()) or type(error).__name__)
    connection.send((value,))


def _end_with_memory(gigabytes: float) -> None:
    """End this process once it has held more than it may."""
    unit = 1 if sys.platform == "darwin" else 1024
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit < gigabytes * 1e9:
        time.sleep(LOOK_SECONDS)
    os._exit(MEMORY_EXIT)
