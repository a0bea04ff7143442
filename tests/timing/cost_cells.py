"""Cells of the tasks that measure costs, small enough for a test."""

from __future__ import annotations

from typing import Any

from normbench import registry
from normbench.cells import Cell


def cost_cell(task: str, method: str = "batch_norm", **changes: Any) -> Cell:
    """A cell at batch 4 on a small ResNet; `changes` are of the cell, or else of its config."""
    config: dict[str, Any] = {"layout": "nchw", "image_size": 32, "threads": 1}
    config |= {"timeout_seconds": 100}
    if task == "throughput":
        config |= {"mode": "train", "compile": False}
    if task == "memory":
        config |= {"budgets_gib": [1]}
    own = {"model": "resnet10t", "batch_size": 4, "precision": "fp32", "seed": 0, "params": {}}
    own |= {name: changes.pop(name) for name in list(changes) if name in own}
    params = own.pop("params")
    return Cell(
        suite="costs", task=task, method=method, params=registry.resolve_params(method, params),
        variant=registry.variant(method, params), model_args={}, dataset="none", dataset_args={},
        config=config | changes, **own,
    )  # fmt: skip
