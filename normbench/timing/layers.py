"""A method's layer and batch norm's, ready to be timed: what both do for a cell of task `layer`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normbench import registry
from normbench.cells import Cell
from normbench.registry import TrainingPlan
from normbench.timing.case import FORMS, Case, Inputs
from normbench.timing.contestants import OURS, in_full_swing
from normbench.timing.stopwatch import Run

REFERENCE = "batch_norm"
COMMUNICATION = "communication"
"""Contestants beside `OURS`; the last where there are two processes."""

PLAN = TrainingPlan(total_steps=10)


def case_of(cell: Cell) -> Case:
    """The input of a cell's layer; what the kernel benchmark calls a form is the activation."""
    config = cell.config
    shape = (cell.batch_size, config["channels"], config["height"], config["width"])
    return Case(config["activation"], shape, config["layout"], cell.precision)


def works(cell: Cell, device: torch.device) -> dict[str, Callable[[], Run]]:
    """What builds each contestant's work; all of them read the same input.

    A run keeps nothing: results are freed within it, as in a network they would soon be.

    Raises:
        ValueError: when called, what the method or batch norm says of a case without statistics.
    """
    case = case_of(cell)
    given = case.inputs(device)
    makers: dict[str, Callable[[], nn.Module]] = {
        OURS: functools.partial(prepared, cell.method, cell.params, case),
        REFERENCE: lambda: _with_activation(nn.BatchNorm2d(case.shape[1]), case),
    }
    found: dict[str, Callable[[], Run]] = {
        name: functools.partial(_work, cell.config["part"], given, make, device)
        for name, make in makers.items()
    }
    if cell.config["processes"] > 1:
        found[COMMUNICATION] = lambda: collectives(case.shape[1], cell.config["part"], device)
    return found


def prepared(method: str, params: Any, case: Case) -> nn.Module:
    """The method's layer as in the midst of training, with the activation, its own or after it."""
    info = registry.get(method)
    act = FORMS[case.form].activation() if info.consumes_activation else None
    layer = registry.build(method, case.shape[1], act, **params)
    if info.prepare is not None:
        info.prepare(layer, PLAN)
    in_full_swing(layer)
    return layer if info.consumes_activation else _with_activation(layer, case)


def _with_activation(norm: nn.Module, case: Case) -> nn.Module:
    act = FORMS[case.form].activation()  # not in place: some backwards need the norm's output
    return norm if act is None else nn.Sequential(norm, act)


def _work(part: str, given: Inputs, make: Callable[[], nn.Module], device: torch.device) -> Run:
    layer = make().to(device).train()
    work = given.forward if part == "forward" else given.both

    def run() -> None:
        work(layer)

    return run


class Contest:
    """Contestants that the host's clock times, each piece of work to its end on the device.

    Attributes:
        device: where they work.
        names: of the contestants.
    """

    def __init__(self, device: torch.device, runs: Mapping[str, Run]) -> None:
        self.device = device
        self.names = tuple(runs)
        self._runs = runs

    def lead(self, name: str) -> None:
        """What comes before a piece of work and is not timed: nothing in one process."""

    def work(self, name: str) -> None:
        """One piece of work."""
        self._runs[name]()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, name: str) -> float:
        """What one piece of work takes."""
        self.lead(name)
        began = time.perf_counter_ns()
        self.work(name)
        return (time.perf_counter_ns() - began) * 1e-9


def collectives(channels: int, part: str, device: torch.device) -> Run:
    """What sync_batch_norm says to the other processes in one step, alone.

    In forward each process gathers mean, variance and number of values of all; in backward all
    add up two sums per channel (normbench.kernels.synchronized).
    """
    own = torch.ones(2 * channels + 1, device=device)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    sums = torch.zeros(2, channels, device=device)

    def run() -> None:
        dist.all_gather(parts, own)
        if part == "both":
            dist.all_reduce(sums)

    return run
