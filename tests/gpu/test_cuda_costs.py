"""Costs measured on a CUDA device: graphs beside launches, real peaks beside counted bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from normbench import registry
from normbench.cells import Cell
from normbench.engine.execute import execute
from normbench.engine.pool import run_pool
from normbench.engine.serve import Setup
from normbench.tasks import layer, memory, throughput
from normbench.tasks.outcome import Outcome
from normbench.timing.norm_share import norm_share
from normbench.timing.nvml import Nvml, NvmlError
from normbench.timing.peaks import GIB

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: `make gpu` runs these on one"
)

CUDA = torch.device("cuda", 0)


def cost_cell(task: str, method: str, **config: Any) -> Cell:
    common = {"layout": "nhwc", "image_size": 64, "threads": 1, "timeout_seconds": 100}
    precision, batch = config.pop("precision", "bf16"), config.pop("batch_size", 16)
    return Cell(
        suite="costs", task=task, method=method, params=registry.resolve_params(method),
        variant=registry.variant(method), model="resnet18", model_args={}, dataset="none",
        dataset_args={}, batch_size=batch, seed=0, precision=precision, config=common | config,
    )  # fmt: skip


def timed(method: str, mode: str = "train", **rest: Any) -> Outcome:
    cell = cost_cell("throughput", method, mode=mode, compile=False, **rest)
    return throughput.run(cell, CUDA, lambda fraction: None)


@pytest.mark.parametrize("mode", ["train", "forward", "inference", "inference_folded"])
def test_every_mode_is_launched_and_replayed(mode: str) -> None:
    found = timed("group_norm", mode).metrics
    assert 0 < found["graph_seconds"] <= 1.2 * found["seconds"]  # nothing waits for Python
    assert {"ratio", "ratio_low", "graph_ratio", "graph_ratio_low"} <= found.keys()
    assert 0 <= found["norm_share"] < 1


def test_the_null_test_holds_in_every_cell_of_a_process() -> None:
    """A profiler that stays attached would slow the later ones down."""
    first, *later = (timed("batch_norm") for _ in range(3))
    for outcome in (first, *later):
        assert outcome.metrics["graph_ratio"] == pytest.approx(1, abs=0.05)
    for outcome in later:
        assert outcome.metrics["seconds"] == pytest.approx(first.metrics["seconds"], rel=0.15)


def test_the_share_of_two_equal_modules_of_five_is_two_fifths() -> None:
    norms = [torch.nn.BatchNorm2d(64).cuda() for _ in range(5)]
    model = torch.nn.Sequential(*norms)
    x = torch.randn(64, 64, 56, 56, device=CUDA, requires_grad=True)
    gradient = torch.randn_like(x)

    def run() -> None:
        model(x).backward(gradient)

    run()
    assert norm_share(model, norms[1:3], run, CUDA) == pytest.approx(0.4, abs=0.05)
    assert norm_share(model, norms, run, CUDA) == pytest.approx(1.0, abs=0.1)


def test_batch_norm_takes_what_batch_norm_takes_also_in_a_fresh_process() -> None:
    cell = cost_cell("memory", "batch_norm", budgets_gib=[])
    assert memory.run(cell, CUDA, lambda fraction: None).metrics["peak_ratio"] == 1.0


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_other_precisions(precision: str) -> None:
    if precision == "tf32" and torch.cuda.get_device_capability(CUDA) < (8, 0):
        pytest.skip("this device has no tf32")
    assert timed("batch_norm", precision=precision).metrics["ratio"] > 0


def test_energy_and_clocks_where_nvml_tells() -> None:
    outcome = timed("batch_norm")
    missing = [note for note in outcome.notes if note.startswith("clocks, power and energy")]
    try:
        joules = Nvml(CUDA).joules()
    except NvmlError as error:
        pytest.skip(f"{error}; the record says so: {missing[0]}")
    assert not missing
    assert outcome.metrics["sm_clock_hz"] > 1e8
    assert ("energy_joules" in outcome.metrics) == (joules is not None)
    assert outcome.metrics.get("energy_joules", 1) > 0


def test_a_method_that_no_graph_can_hold_costs_the_next_cell_nothing() -> None:
    """Its eigenvalues are found with the host's help."""
    cells = [
        cost_cell("throughput", method, mode="train", compile=False)
        for method in ("decorrelated_batch_norm", "batch_norm")
    ]
    setup = Setup(CUDA, 1, "tests")
    first, second = run_pool(cells, setup, 1, lambda event: None)
    assert (first.status, second.status) == ("ok", "ok")
    assert first.metrics["seconds"] > 0
    assert "graph_seconds" not in first.metrics
    assert second.metrics["graph_ratio"] == pytest.approx(1, abs=0.05)


def test_a_layer_is_launched_and_replayed() -> None:
    cell = layer.cell("batch_norm", shape=(64, 64, 56, 56), precision="bf16", layout="nhwc")
    found = layer.run(cell, CUDA, lambda fraction: None).metrics
    assert 0 < found["graph_seconds"] <= 1.2 * found["seconds"]
    assert found["graph_ratio"] == pytest.approx(1, abs=0.05)


def test_synchronized_batch_norm_between_two_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices, there is one")
    cell = layer.cell("sync_batch_norm", shape=(32, 64, 56, 56), processes=2)
    found = layer.run(cell, CUDA, lambda fraction: None).metrics
    assert 0 < found["communication_seconds"] < found["seconds"]


def test_a_batch_that_does_not_fit_is_an_oom_with_its_size() -> None:
    cell = cost_cell("throughput", "batch_norm", mode="train", compile=False, batch_size=8_000_000)
    record = execute(cell, device=CUDA)
    assert record.status == "oom"
    assert record.reason.startswith("batch 8000000 at 64 px does not fit into memory")
    assert "GiB" in record.reason


def test_the_allocators_peak_holds_what_autograd_keeps() -> None:
    cell = cost_cell("memory", "batch_norm", budgets_gib=[], precision="fp32", batch_size=64)
    found = memory.run(cell, CUDA, lambda fraction: None).metrics
    least = 3 * found["parameter_bytes"] + found["buffer_bytes"]
    above = found["peak_allocated_bytes"] - least
    # At the height part of the gradients is not there yet, and the backward has tensors of its own.
    assert 0.8 * found["saved_bytes"] < above + found["parameter_bytes"]
    assert above < 2 * found["saved_bytes"]
    assert found["peak_reserved_bytes"] >= found["peak_allocated_bytes"]


def test_the_predicted_batch_is_near_the_one_that_fits() -> None:
    cell = cost_cell("memory", "batch_norm", budgets_gib=[1], batch_size=64)
    found = memory.run(cell, CUDA, lambda fraction: None).metrics
    fits, predicted = found["largest_batch_1gib"], found["predicted_largest_batch_1gib"]
    assert fits == pytest.approx(predicted, rel=0.1)
    assert torch.cuda.memory_reserved(CUDA) < 2 * GIB
