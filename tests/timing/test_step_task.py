"""Task `step`: the training step of a whole model, timed and weighed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from made_up_watch import MadeUpWatch

from normbench import registry
from normbench.cells import Cell
from normbench.tasks import step
from normbench.tasks.outcome import Outcome
from normbench.timing.models import Work
from normbench.timing.saved import saved_bytes
from normbench.timing.stopwatch import Run, Timer

CPU = torch.device("cpu")


def make_cell(method: str, *modes: str, model: str = "resnet10t") -> Cell:
    return Cell(
        suite="kernels", task="step", method=method, params=registry.resolve_params(method),
        variant=registry.variant(method), model=model, model_args={}, dataset="none",
        dataset_args={}, batch_size=4, seed=0, precision="bf16",
        config={
            "layout": "nhwc", "image_size": 32, "peers": ["eager"], "modes": list(modes),
            "timeout_seconds": 100,
        },
    )  # fmt: skip


def measured(cell: Cell, watch: type[MadeUpWatch] = MadeUpWatch) -> Outcome:
    return step.run(cell, CPU, lambda fraction: None, watch)


def test_both_modes_are_timed_against_the_untouched_model() -> None:
    outcome = measured(make_cell("batch_norm", "launched", "graph"))
    assert outcome.status == "ok"
    for mode in ("launched", "graph"):
        assert outcome.metrics[f"eager_{mode}_step_ratio"] > 1  # the made-up watch has it so
    assert outcome.slots["replaced"] == outcome.slots["found"] > 0
    assert len(outcome.samples) >= step.LEAST


def test_a_peer_that_no_graph_can_hold_leaves_the_process_unfit_for_another_cell() -> None:
    class NoSecondGraph(MadeUpWatch):
        def replayed(self, runs: Sequence[Run], *, keep: bool = False) -> Timer:
            if any(kind == "again" for kind, _ in self.log):
                self.spoilt = True
                raise RuntimeError("a value was read on the host")
            return super().replayed(runs, keep=keep)

    cell = make_cell("batch_norm", "graph")
    assert not measured(cell).spoilt
    outcome = measured(cell, NoSecondGraph)
    assert (outcome.status, outcome.spoilt) == ("ok", True)
    assert "read on the host" in outcome.trials[1]["reason"]


def test_memory_alone() -> None:
    outcome = measured(make_cell("batch_norm"))
    assert not any(name.endswith("_seconds") for name in outcome.metrics)
    assert outcome.metrics["eager_saved_ratio"] == pytest.approx(1.0, rel=0.01)
    assert outcome.samples == ()


def test_what_is_kept_is_the_activations_and_no_parameter() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 1000),
    )  # fmt: skip
    work = Work(model, make_cell("batch_norm"), CPU)
    images, half = 4 * 3 * 32 * 32, 4 * 8 * 32 * 32
    logits = 4 * 1000
    # The image in half precision, ReLU's output once for all who read it, the pooled features; the
    # loss keeps its logarithms in float32 and the labels.
    least = 2 * images + 2 * half + 4 * logits
    assert least <= saved_bytes(model, work.loss).total <= least + 2 * logits + 1000


def test_both_models_start_from_the_same_weights() -> None:
    models, report = step._models(make_cell("group_norm"), CPU)
    theirs, ours = models["eager"], models["ours"]
    assert theirs.training
    assert ours.training
    weights = [dict(m.named_parameters())["conv1.0.weight"] for m in (theirs, ours)]
    assert torch.equal(*weights)
    assert report.replaced > 0
