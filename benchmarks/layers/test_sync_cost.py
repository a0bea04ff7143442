"""What synchronized batch norm's communication costs: two processes, each with a batch of its own.

In rounds: its layer's training step, batch norm's, and its collectives alone, both processes at a
barrier before each. gloo on the CPU; NCCL where there are two CUDA devices.

    pytest benchmarks/layers/test_sync_cost.py -s
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded import measured, ratio

from normbench.engine.environment import resolve_device
from normbench.tasks import layer
from normbench.timing.in_step import PROCESSES

SHAPES = {
    "2x64x56x56": (2, 64, 56, 56),
    "32x256x14x14": (32, 256, 14, 14),
    "2x2048x7x7": (2, 2048, 7, 7),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_communication(shape: str, benchmark: Any) -> None:
    """Measures and reports; there is no target to fail."""
    benchmark.group = f"{shape} both, {PROCESSES} processes"
    device = resolve_device("cuda" if torch.cuda.device_count() >= PROCESSES else "cpu")
    cell = layer.cell("sync_batch_norm", shape=SHAPES[shape], processes=PROCESSES)
    if metrics := measured(benchmark, cell, device):
        alone, share = metrics["communication_seconds"], metrics["communication_share"]
        print(
            f"\n{shape}: sync_batch_norm / batch norm {ratio(metrics)}; communication alone "
            f"{alone * 1e6:.0f} µs, {share:.0%} of the step"
        )
