"""DistributedDataParallel: two processes average the gradients that one process computes."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbench import registry
from normbench.capabilities import ddp_process
from normbench.capabilities.ddp_process import PATIENCE, PROCESSES, gradients
from normbench.capabilities.probe import Answer, NotMeasured, probe
from normbench.capabilities.subject import Subject, change
from normbench.capabilities.weights import network
from normbench.registry import MethodInfo
from normbench.surgery import weights

STEPS = 2
"""The second step starts from buffers that the first has changed and DDP has made equal."""

AGREES = 1e-5
"""Relative difference in float64 beyond which two gradients differ."""

POLL_SECONDS = 0.05

WeightSide = tuple[MethodInfo, dict[str, Any]]
Work = tuple[nn.Module, WeightSide | None, list[list[Tensor]]]


@probe("DDP", slow=True)
def ddp_averages(subject: Subject) -> Answer:
    """Under DistributedDataParallel gradients are the mean of those of the processes' batches.

    Two processes with gloo on the CPU, a small network with the method in its slots, two steps in
    float64; compared with both batches computed in one process from the buffers of the first.
    Statistics are not pooled over processes: each normalizes its own batch.
    """
    model = network(subject.settings["channels"])
    side = subject.settings["side"]
    x = subject.images(PROCESSES * subject.batch, 3, side, side).cpu()
    subject.operate(model, x)
    batches = [list(x.double().chunk(PROCESSES)) for _ in range(STEPS)]
    expected = _in_one_process(copy.deepcopy(model.double()), batches)
    found = _in_processes((model, _take_off(subject, model), batches))
    if isinstance(found, str):
        _expect_ddp()
        return Answer(False, found)
    by = {name: change(found[name], mean) for name, mean in expected.items()}
    worst = max(by, key=lambda name: by[name])
    if by[worst] > AGREES:
        return Answer(False, f"the gradient of {worst} is off by {by[worst]:.2g}")
    return Answer(True)


def _take_off(subject: Subject, model: nn.Module) -> WeightSide | None:
    """Undo the method's weight side, for the processes to put on: torch cannot pickle it."""
    if not any(parametrize.is_parametrized(module) for module in model.modules()):
        return None
    weights.undo(model)
    return subject.info, registry.resolve_params(subject.method, subject.params)


def _in_one_process(model: nn.Module, batches: list[list[Tensor]]) -> dict[str, Tensor]:
    """Mean gradients of the last step, every batch from the buffers of the first process."""
    for step in batches:
        twins = [copy.deepcopy(model) for _ in step]
        found = [gradients(twin, batch) for twin, batch in zip(twins, step, strict=True)]
        model = twins[0]
    return {name: torch.stack([g[name] for g in found]).mean(0) for name in found[0]}


def _expect_ddp() -> None:
    """Tell a layer that does not work under DDP from a machine on which nothing does."""
    batch = torch.randn(2, 2, dtype=torch.float64)
    fault = _in_processes((nn.Linear(2, 2).double(), None, [[batch] * PROCESSES]))
    if isinstance(fault, str):
        raise NotMeasured(f"missing: DistributedDataParallel does not work here: {fault}")


def _in_processes(work: Work) -> dict[str, Tensor] | str:
    """The first process's gradients, or what went wrong in one line."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(work, Path(folder, "work.pt"))
        if fault := _run(folder):
            return fault
        found: dict[str, Tensor] = torch.load(Path(folder, "gradients.pt"))
        return found


def _run(folder: str) -> str:
    """Start the processes and wait until all are done or one fails; what went wrong."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", ddp_process.__file__, folder]
    with ExitStack() as stack:
        processes = []
        for rank in range(PROCESSES):
            log = stack.enter_context(Path(folder, f"log-{rank}").open("wb"))
            process = subprocess.Popen(
                [*command, str(rank)], env=environment, stdin=subprocess.PIPE, stdout=log,
                stderr=log,
            )  # fmt: skip
            stack.enter_context(process)  # closes its pipe and waits
            stack.callback(process.kill)
            processes.append(process)
        deadline = time.monotonic() + PATIENCE
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            if time.monotonic() > deadline:
                return f"not done after {PATIENCE:g} s"
            time.sleep(POLL_SECONDS)
            codes = [process.poll() for process in processes]
    failed = next((rank for rank, code in enumerate(codes) if code), None)
    return "" if failed is None else _last_words(Path(folder, f"log-{failed}"), codes[failed])


def _last_words(log: Path, code: int | None) -> str:
    """The error in a process's log: the last line that begins as one does."""
    # torch.distributed puts the rank before each line of a traceback.
    words = re.sub(r"^\[rank\d+\]: ?", "", log.read_text("utf-8", errors="replace"), flags=re.M)
    lines = words.splitlines()
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return errors[-1][:200] if errors else f"a process ended with exit code {code}"
