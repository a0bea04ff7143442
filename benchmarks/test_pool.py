"""What a worker process costs, fresh from the fork server or from nothing.

`pytest benchmarks/test_pool.py`; figures in docs/decisions/003.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from normbench.cells import Cell
from normbench.engine.pool import run_pool
from normbench.engine.serve import Setup

SETUP = Setup(torch.device("cpu"), 1, "bench", ("normbench.tasks.accuracy",))

NOTHING = Cell(
    suite="bench", task="accuracy", method="no_such_method", params={}, variant="", model="",
    model_args={}, dataset="", dataset_args={}, batch_size=1, seed=0, precision="fp32", config={},
)  # fmt: skip
"""A cell that ends at once."""


def first_record() -> None:
    (record,) = run_pool([NOTHING], SETUP, 1, lambda event: None)
    assert record.status == "error"


def test_from_the_fork_server(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(first_record, warmup_rounds=1, rounds=20)


def test_from_nothing(benchmark: BenchmarkFixture) -> None:
    command = [sys.executable, "-c", "import normbench.tasks.accuracy"]
    benchmark.pedantic(subprocess.run, args=(command,), kwargs={"check": True}, rounds=3)
