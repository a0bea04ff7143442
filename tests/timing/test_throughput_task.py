"""Task `throughput`: a model with a method beside the same model with batch norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from cost_cells import cost_cell
from made_up_watch import MadeUpWatch, NoGraphs

from normbench import registry, surgery
from normbench.cells import Cell
from normbench.engine.execute import execute
from normbench.tasks import throughput
from normbench.tasks.outcome import Outcome
from normbench.timing import models
from normbench.timing.contestants import OURS
from normbench.timing.machine import MachineError
from normbench.timing.models import MODES, REFERENCE, Work, base_model, norm_sizes, prepared

CPU = torch.device("cpu")


def measured(cell: Cell, watch: Any = None) -> Outcome:
    extra = () if watch is None else (watch,)
    return throughput.run(cell, CPU, lambda fraction: None, *extra)


@pytest.fixture(scope="module")
def real() -> Outcome:
    return measured(cost_cell("throughput", "group_norm"))


def test_medians_percentiles_and_the_ratio_come_from_the_rounds(real: Outcome) -> None:
    found, (ours, reference) = real.metrics, real.trials
    assert [t["config"]["contestant"] for t in real.trials] == [OURS, REFERENCE]
    rounds = len(real.samples)
    assert rounds == found["rounds"] == len(reference["samples"]["launched"])
    assert rounds >= throughput.LEAST_ROUNDS
    assert found["p20_seconds"] <= found["seconds"] <= found["p80_seconds"]
    ratios = sorted(
        a / b
        for a, b in zip(ours["samples"]["launched"], reference["samples"]["launched"], strict=True)
    )
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert ratios[0] <= found["ratio"] * 1.001
    assert found["ratio"] * 0.999 <= ratios[-1]
    assert found["images_per_second"] == pytest.approx(4 / found["seconds"])
    assert 0 < found["norm_share"] < 1


def test_sizes_are_those_of_the_slots(real: Outcome) -> None:
    """ResNet-10-T at 32 px: found once more by hand, with hooks on the untouched model."""
    base = base_model(cost_cell("throughput"), CPU)
    elements = 0

    def add(module: torch.nn.Module, given: Any, result: torch.Tensor) -> None:
        nonlocal elements
        elements += result.numel()

    for module in base.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(add)
    base(torch.zeros(4, 3, 32, 32))
    assert real.metrics["norm_elements"] == elements > 0
    assert real.metrics["norm_pass_bytes"] == 4 * elements


def test_half_precision_passes_move_half_the_bytes() -> None:
    cell = cost_cell("throughput", precision="bf16")
    ready = prepared(base_model(cell, CPU), "batch_norm", {}, cell, CPU)
    sizes = norm_sizes(ready.report, cell)
    assert sizes["norm_pass_bytes"] == 2 * sizes["norm_elements"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_and_is_what_it_says(mode: str) -> None:
    outcome = measured(cost_cell("throughput", "batch_norm", mode=mode), MadeUpWatch)
    assert outcome.status == "ok"
    # The made-up watch: reference and graph are timed after ours, each a microsecond longer.
    assert outcome.metrics["ratio"] == pytest.approx(1 / 2)
    assert outcome.metrics["graph_ratio"] == pytest.approx(3 / 4)
    if mode == "inference_folded":
        assert outcome.metrics["folded"] > 0 == outcome.metrics["not_folded"]
    else:
        assert "folded" not in outcome.metrics


def test_whitening_does_not_fold_once_it_has_seen_data() -> None:
    cell = cost_cell("throughput", "iter_norm", mode="inference_folded")
    ready = prepared(base_model(cell, CPU), "iter_norm", {}, cell, CPU)
    assert ready.folded == 0
    assert len(ready.unfolded) == ready.report.replaced > 0


def test_training_modes_train_and_inference_does_not() -> None:
    kept = {}
    for mode in MODES:
        cell = cost_cell("throughput", mode=mode)
        model = prepared(base_model(cell, CPU), "batch_norm", {}, cell, CPU).model
        work = Work(model, cell, CPU)
        before = {name: b.clone() for name, b in model.named_buffers()}
        weights = [p.detach().clone() for p in model.parameters()]
        work.run()
        kept[mode] = all(torch.equal(b, before[name]) for name, b in model.named_buffers())
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
        assert all(p.grad is None for p in model.parameters())
        assert bool(work.optimizer.state) == (mode == "train")
    assert kept == {"train": False, "forward": False, "inference": True, "inference_folded": True}


def test_both_start_from_the_same_weights_and_see_the_same_loss() -> None:
    cell = cost_cell("throughput", "batch_norm")
    base = base_model(cell, CPU)
    losses = []
    for _ in range(2):
        losses.append(Work(prepared(base, "batch_norm", {}, cell, CPU).model, cell, CPU).loss())
    assert torch.equal(*losses)


def test_a_base_model_is_the_cells_own_and_drawn_from_its_seed() -> None:
    """What one cell does to its copy is not there in the next."""
    first = base_model(cost_cell("throughput"), CPU)
    weight = first.get_parameter("fc.weight")
    untouched = weight.detach().clone()
    chance = torch.rand(1)
    with torch.no_grad():
        weight.zero_()
    again = base_model(cost_cell("throughput"), CPU)
    assert torch.equal(again.get_parameter("fc.weight"), untouched)
    assert torch.equal(torch.rand(1), chance)
    other = base_model(dataclasses.replace(cost_cell("throughput"), seed=1), CPU)
    assert not torch.equal(other.get_parameter("fc.weight"), untouched)


def test_batch_renorm_is_timed_in_full_swing() -> None:
    cell = cost_cell("throughput", "batch_renorm")
    model = prepared(base_model(cell, CPU), "batch_renorm", {}, cell, CPU).model
    layers = [m for m in model.modules() if hasattr(m, "active_steps")]
    Work(model, cell, CPU).step()
    assert layers
    assert all(int(layer.active_steps) == 1 for layer in layers)


def test_a_reference_that_fails_leaves_the_methods_own_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = models.surgery.swap

    def only_ours(model: Any, method: str, **rest: Any) -> Any:
        if method == REFERENCE:
            raise RuntimeError("no batch norm today")
        return honest(model, method, **rest)

    monkeypatch.setattr(surgery, "swap", only_ours)
    outcome = measured(cost_cell("throughput", "group_norm"), MadeUpWatch)
    assert outcome.metrics["seconds"] > 0
    assert "ratio" not in outcome.metrics
    assert any("no batch norm today" in note for note in outcome.notes)


def test_after_a_graph_that_could_not_be_captured_no_cell_shares_the_process() -> None:
    assert not measured(cost_cell("throughput"), MadeUpWatch).spoilt
    outcome = measured(cost_cell("throughput"), NoGraphs)
    assert (outcome.status, outcome.spoilt) == ("ok", True)
    assert "graph_seconds" not in outcome.metrics
    assert any("a value was read on the host" in note for note in outcome.notes)


@pytest.mark.parametrize("task", ["throughput", "memory"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "fp64"}, "precision is 'fp64'; expected fp32 or bf16 or fp16 or tf32"),
        ({"layout": "nchw8"}, "layout is 'nchw8'; expected nchw or nhwc"),
        ({"mode": "training"}, "mode is 'training'; expected train"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1"),
        ({"image_size": "64"}, "image_size is '64'; expected a whole number from 1"),
        ({"threads": True}, "threads is True; expected a whole number from 1"),
        ({"threads": None}, "threads is None; expected a whole number from 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    task: str, change: dict[str, Any], words: str
) -> None:
    record = execute(cost_cell(task, **change), device=CPU)
    assert record.status == "error"
    assert record.reason.startswith(words)


def test_two_that_fit_alone_but_not_together_leave_the_methods_own_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = throughput.in_turns

    def one_at_a_time(timers: dict[str, Any], **rest: Any) -> Any:
        if len(timers) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return honest(timers, **rest)

    monkeypatch.setattr(throughput, "in_turns", one_at_a_time)
    outcome = measured(cost_cell("throughput", "group_norm"))
    assert outcome.status == "ok"
    assert outcome.metrics["seconds"] > 0
    assert "ratio" not in outcome.metrics
    assert any("do not fit side by side" in note for note in outcome.notes)
    assert "no room for two" in outcome.trials[1]["reason"]


def test_contestants_see_the_same_images() -> None:
    cell = cost_cell("throughput")
    base = base_model(cell, CPU)
    images = []
    for method in ("group_norm", REFERENCE):
        images.append(Work(prepared(base, method, {}, cell, CPU).model, cell, CPU).images)
    assert torch.equal(*images)
    other = cost_cell("throughput", seed=1)
    assert not torch.equal(images[0], Work(base, other, CPU).images)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "tf32"}, "precision tf32 is one of CUDA devices"),
        ({"threads": 4096}, "4096 CPU threads were asked for, this machine has"),
    ],
)
def test_what_the_machine_lacks_is_refused_in_one_sentence(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(MachineError, match=words):
        measured(cost_cell("throughput", **changes))
    record = execute(cost_cell("throughput", **changes), device=CPU)
    assert record.status == "error"
    assert record.reason.startswith(words)


def test_a_model_without_slots_is_refused_in_one_sentence() -> None:
    record = execute(cost_cell("throughput", model="vgg11"), device=CPU)
    assert record.status == "error"
    assert "has no normalization slots" in record.reason


def test_a_batch_that_does_not_fit_is_a_result_that_names_its_size() -> None:
    cell = cost_cell("throughput", batch_size=20_000_000, image_size=64)
    record = execute(cell, device=CPU)
    assert record.status == "oom"
    assert record.reason.startswith("batch 20000000 at 64 px does not fit into memory: ")
    assert record.cell.batch_size == 20_000_000


def test_the_record_says_what_it_was_measured_with() -> None:
    record = execute(cost_cell("throughput", threads=1, mode="inference"), device=CPU, threads=7)
    assert record.environment["threads"] == 1
    assert record.environment["numerics"]["deterministic"] is False
    assert registry.get("batch_norm").code_hash() == record.code_hash
