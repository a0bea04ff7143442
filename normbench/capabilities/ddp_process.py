"""One of the processes of the DDP probe (parallel.py), run as a script to start quickly.

It ends when the process that started it does, since its standard input closes then.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
from pathlib import Path

import torch
from torch import Tensor, nn

PROCESSES = 2

PATIENCE = 300.0
"""Seconds that the processes may take."""


def gradients(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean square of the model's output; 0 where a parameter has none."""
    model.zero_grad()
    model(batch).square().mean().backward()
    return {
        name.removeprefix("module."): torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def main(folder: str, rank: int) -> None:
    """Read the work, train under DDP; the first process leaves its gradients."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    threading.Thread(target=_end_with_parent, daemon=True).start()
    model, weight_side, batches = torch.load(Path(folder, "work.pt"), weights_only=False)
    if weight_side is not None:
        from normbench.surgery import weights

        weights.take_over(model, *weight_side)
    store = Path(folder, "store")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )  # fmt: skip
    parallel = DistributedDataParallel(model)
    for step in batches:
        found = gradients(parallel, step[rank])
    if rank == 0:
        torch.save(found, Path(folder, "gradients.pt"))
    dist.barrier()
    dist.destroy_process_group()


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: Python could not close that at its end
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
