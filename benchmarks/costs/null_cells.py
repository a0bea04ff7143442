"""Cells of batch norm at 64 px in float32, as the suites that measure costs on a CPU have them."""

from __future__ import annotations

from typing import Any

from normbench import registry
from normbench.cells import Cell

MODELS = ("resnet50", "efficientnet_b0", "convnext_atto")
THREADS = 2


def null_cell(task: str, model: str, batch: int, seed: int = 0, **config: Any) -> Cell:
    """A cell; `config` is what its task wants besides."""
    common = {"layout": "nchw", "image_size": 64, "threads": THREADS, "timeout_seconds": 300}
    return Cell(
        suite="benchmarks", task=task, method="batch_norm",
        params=registry.resolve_params("batch_norm"), variant="batch_norm", model=model,
        model_args={}, dataset="none", dataset_args={}, batch_size=batch, seed=seed,
        precision="fp32", config=common | config,
    )  # fmt: skip
