"""Does the batch that task `memory` predicts for a budget really take that budget?

On CUDA the task itself searches by real runs. Here a step is run at the predicted batch, and its
height measured as the task measures heights.

    pytest benchmarks/costs/test_line.py -s
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from null_cells import MODELS, null_cell

from normbench.tasks import memory
from normbench.timing.models import Work, base_model, prepared
from normbench.timing.peaks import GIB, in_use

DEVICE = torch.device("cpu")
BUDGET_GIB = 4


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows that are printed at the end."""
    rows: list[str] = []
    yield rows
    header = f"| model | batch predicted for {BUDGET_GIB} GiB | its height, GiB |\n|---|---|---|"
    print("\n" + "\n".join([header, *rows]))


@pytest.mark.parametrize("model", MODELS)
def test_the_predicted_batch(model: str, table: list[str]) -> None:
    """Reports; a line that is off by a tenth has missed what makes the height."""
    cell = null_cell("memory", model, 2, budgets_gib=[BUDGET_GIB])
    found = memory.run(cell, DEVICE, lambda fraction: None).metrics
    batch = int(found[f"predicted_largest_batch_{BUDGET_GIB}gib"])
    network = prepared(base_model(cell, DEVICE), "batch_norm", {}, cell, DEVICE).model
    optimizer = Work(network, cell, DEVICE).optimizer
    weighing = memory.Weighing(cell, DEVICE)
    height = weighing.height(network, optimizer, batch, in_use(DEVICE)).allocated / GIB
    table.append(f"| {model} | {batch} | {height:.2f} |")
    assert height == pytest.approx(BUDGET_GIB, rel=0.1)
