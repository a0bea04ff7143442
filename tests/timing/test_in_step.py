"""Two processes in step, and what synchronized batch norm says between them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from normbench.engine.execute import execute
from normbench.kernels import synchronized
from normbench.methods import sync_batch_norm
from normbench.tasks import layer
from normbench.timing import layers

CPU = torch.device("cpu")


def cell(**options: Any) -> Any:
    return layer.cell("sync_batch_norm", shape=(2, 6, 5, 5), processes=2, **options)


def test_two_processes_leave_one_record_and_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "LEAST", 6)
    monkeypatch.setattr(layer, "MOST", 6)
    record = execute(cell(), device=CPU)
    assert (record.status, record.reason) == ("ok", "")
    metrics = record.metrics
    assert metrics["rounds"] == 6
    assert metrics["ratio"] > 1  # it does batch norm's work and waits twice
    assert 0 < metrics["communication_seconds"] < 1
    names = [trial["config"]["contestant"] for trial in record.trials]
    assert names == ["ours", "batch_norm", "communication"]
    assert not dist.is_initialized()


def test_a_second_process_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    record = execute(cell(), device=CPU)
    assert record.status == "error"
    assert "the second process failed" in record.reason
    assert not dist.is_initialized()


@pytest.mark.parametrize("part", layer.CELL_PARTS)
def test_the_collectives_alone_are_those_of_the_layer(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is played: what is said is counted, and the other process says the same."""
    said: list[tuple[str, int]] = []

    def gather(parts: list[Tensor], own: Tensor) -> None:
        said.append(("gather", own.numel()))
        for part in parts:
            part.copy_(own)

    def reduce(sums: Tensor) -> None:
        said.append(("reduce", sums.numel()))

    monkeypatch.setattr(dist, "all_gather", gather)
    monkeypatch.setattr(dist, "all_reduce", reduce)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for module in (synchronized, sync_batch_norm):
        monkeypatch.setattr(module, "process_count", lambda: 2)
    makers: dict[str, Callable[[], Any]] = layers.works(cell(part=part), CPU)
    makers["ours"]()()
    by_the_layer, said[:] = list(said), []
    makers["communication"]()()
    assert said == by_the_layer
    assert len(said) == (1 if part == "forward" else 2)
