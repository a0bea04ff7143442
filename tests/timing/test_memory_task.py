"""Task `memory`: what a training step takes, counted and measured."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from cost_cells import cost_cell
from torch import nn

from normbench.tasks import memory
from normbench.tasks.outcome import Outcome
from normbench.timing.models import Work, base_model, prepared
from normbench.timing.peaks import GIB, Line, largest_batch, peak
from normbench.timing.saved import saved_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def null() -> Outcome:
    return memory.run(cost_cell("memory"), CPU, lambda fraction: None)


def test_batch_norm_takes_what_batch_norm_takes(null: Outcome) -> None:
    assert null.metrics["saved_ratio"] == null.metrics["peak_ratio"] == 1.0


def test_slots_add_up_and_are_named(null: Outcome) -> None:
    costs, found = null.slots["costs"], null.metrics
    assert sum(cost["saved_bytes"] for cost in costs) == found["norm_saved_bytes"]
    assert sum(cost["elements"] for cost in costs) == found["norm_elements"]
    assert len(costs) == null.slots["found"]
    assert 0 < found["norm_saved_bytes"] < found["saved_bytes"]


def test_a_batch_norm_saves_its_input_and_two_statistics_per_channel() -> None:
    norm = nn.BatchNorm2d(8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.ReLU(inplace=True))
    images = torch.randn(2, 3, 10, 10)
    found = saved_bytes(model, lambda: model(images), {"1": norm})
    activation = 2 * 8 * 8 * 8 * 4
    assert found.by_slot == {"1": activation + 2 * 8 * 4}
    # In all: the image for the convolution, and ReLU's output, which is the norm's own storage.
    assert found.total == 2 * 3 * 10 * 10 * 4 + found.by_slot["1"] + activation


def test_nothing_is_kept_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sigmoid())
    images = torch.randn(2, 3, 10, 10)
    results: list[weakref.ref[torch.Tensor]] = []

    def forward() -> None:
        results.append(weakref.ref(model(images)))

    saved_bytes(model, forward)
    gc.collect()
    assert results[0]() is None
    alive = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (2, 8, 8, 8)]
    assert alive == []


def test_autocasts_copies_of_weights_do_not_count() -> None:
    layer = nn.Linear(64, 32)
    x = torch.randn(8, 64)

    def forward() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)

    assert saved_bytes(layer, forward).total == 8 * 64 * 2


def test_an_activation_with_the_shape_of_a_weight_counts_under_autocast() -> None:
    layer = nn.Linear(64, 64)
    x = torch.randn(64, 64, requires_grad=True)

    def forward() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)

    assert saved_bytes(layer, forward).total == 64 * 64 * 2


def test_the_peak_of_known_allocations_is_their_sum() -> None:
    def run() -> None:
        first = torch.empty(1000, dtype=torch.float32)
        second = torch.empty(3000, dtype=torch.float32)
        del first
        third = torch.empty(500, dtype=torch.float32)
        del second, third

    assert peak(run, CPU).allocated == 16000


def test_the_peak_holds_weights_gradients_optimizer_and_what_is_saved(null: Outcome) -> None:
    found = null.metrics
    # SGD with momentum: weights, gradients, momentum.
    assert found["peak_allocated_bytes"] > 3 * found["parameter_bytes"] + found["saved_bytes"]
    assert found["fixed_bytes"] > 3 * found["parameter_bytes"]


def test_the_line_tells_the_peak_of_a_batch_it_never_saw(null: Outcome) -> None:
    line = Line(null.metrics["fixed_bytes"], null.metrics["bytes_per_sample"])
    assert 96 not in (memory.LINE_BATCH, 2 * memory.LINE_BATCH)
    cell = cost_cell("memory", batch_size=96)
    real = memory.run(cell, CPU, lambda fraction: None).metrics["peak_allocated_bytes"]
    assert line.at(96) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(("batch", "first"), [(4, 16), (16, 16), (20, 20)])
def test_the_line_goes_through_batches_that_activations_fill(
    batch: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    honest = memory.Weighing.height

    def told(self: Any, model: Any, optimizer: Any, at: int, before: Any) -> Any:
        seen.append(at)
        return honest(self, model, optimizer, at, before)

    monkeypatch.setattr(memory.Weighing, "height", told)
    memory.run(cost_cell("memory", batch_size=batch), CPU, lambda fraction: None)
    assert seen == 2 * list(dict.fromkeys([batch, first, 2 * first]))


def test_the_predicted_batch_is_the_largest_within_the_budget(null: Outcome) -> None:
    line = Line(null.metrics["fixed_bytes"], null.metrics["bytes_per_sample"])
    batch = int(null.metrics["predicted_largest_batch_1gib"])
    assert line.at(batch) <= GIB < line.at(batch + 1)


def test_a_method_that_saves_more_has_a_ratio_above_1() -> None:
    found = memory.run(cost_cell("memory", "switchable_norm"), CPU, lambda fraction: None)
    reference = found.metrics["reference_saved_bytes"]
    assert found.metrics["saved_bytes"] > reference
    assert found.metrics["saved_ratio"] == found.metrics["saved_bytes"] / reference
    assert found.metrics["norm_parameters"] > found.metrics["reference_norm_parameters"]


@pytest.mark.parametrize("truth", [0, 1, 2, 37, 100, 1000])
@pytest.mark.parametrize("guess", [1, 30, 100, 5000])
def test_the_search_finds_the_largest_batch_from_any_guess(truth: int, guess: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= truth

    assert largest_batch(fits, guess) == truth
    assert len(set(tried)) == len(tried)
    assert truth + 1 in tried
    assert len(tried) < 30


def test_a_good_guess_is_cheap() -> None:
    tried: list[int] = []
    largest_batch(lambda batch: tried.append(batch) or batch <= 200, 190)  # type: ignore[func-returns-value]
    assert len(tried) <= 8


def test_a_line_needs_two_batches_and_a_slope() -> None:
    with pytest.raises(ValueError, match="two points"):
        Line.through(4, 10.0, 4, 20.0)
    with pytest.raises(ValueError, match="no largest batch"):
        Line(10.0, 0.0).largest(100.0)
    assert Line.through(2, 30.0, 4, 50.0) == Line(10.0, 10.0)
    assert Line(10.0, 10.0).largest(5.0) == 0


def test_work_at_another_batch_shares_model_and_optimizer() -> None:
    cell = cost_cell("memory")
    model = prepared(base_model(cell, CPU), "batch_norm", {}, cell, CPU).model
    optimizer = Work(model, cell, CPU).optimizer
    other = memory.Weighing(cell, CPU)._work(model, optimizer, 6)
    assert other.images.shape[0] == 6
    assert other.optimizer is optimizer
