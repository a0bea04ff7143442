"""The second of two processes in step (in_step.py), run as a module.

It ends when the process that started it does, since its standard input closes then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import torch

from normbench.cells import Cell
from normbench.timing.allocator import memory_kept
from normbench.timing.in_step import READY, joined
from normbench.timing.stopwatch import as_users_run


def main(cell: Cell, device: str, folder: str) -> None:
    """Do what the first process tells."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Path(folder, READY).touch()
    torch.set_num_threads(cell.config["threads"])
    with (
        as_users_run(),
        memory_kept(),
        joined(cell, torch.device(device), Path(folder), rank=1) as group,
    ):
        group.follow()


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: Python could not close that at its end
    os._exit(1)


if __name__ == "__main__":
    main(Cell.from_json(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3])
