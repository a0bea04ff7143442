from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from normbench import data, registry
from normbench.cells import Cell
from normbench.tasks import accuracy

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "samples": 320,
    "epochs": None,
    "min_steps": 20,
    "accumulate": 1,
    "optimizer": "sgd",
    "lr": 0.1,
    "lr_reference_batch": 128,
    "lr_scaling": "linear",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup_fraction": 0.05,
    "label_smoothing": 0.0,
    "clip_grad_norm": None,
    "evaluations": 2,
    "eval_batch_size": 200,
    "timeout_seconds": 60,
    "tune": None,
}


def cell(
    method: str = "batch_norm",
    params: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **fields: Any,
) -> Cell:
    base = Cell(
        suite="test",
        task="accuracy",
        method=method,
        params=registry.resolve_params(method, params),
        variant=registry.variant(method, params),
        model="nb_resnet10_1x1",
        model_args={},
        dataset="embedded:digits",
        dataset_args={},
        batch_size=16,
        seed=0,
        precision="fp32",
        config={**CONFIG, **(config or {})},
    )
    return replace(base, **fields)


def run(asked: Cell) -> accuracy.Outcome:
    return accuracy.run(asked, CPU, lambda fraction: None)


def test_learns_real_digits_and_records_the_curve() -> None:
    outcome = run(cell(config={"samples": 3200}))
    assert outcome.status == "ok"
    assert outcome.metrics["test_accuracy"] > 0.8  # chance is 0.1
    assert outcome.metrics["steps"] == 200
    assert outcome.metrics["samples_seen"] == 3200
    assert [point["step"] for point in outcome.curve] == [100, 200]
    assert outcome.curve[1]["train_loss"] < outcome.curve[0]["train_loss"]


@pytest.mark.parametrize("method", ["batch_norm", "proxy_norm"])
def test_same_cell_gives_bitwise_equal_metrics(method: str) -> None:
    asked = cell(method)
    first, second = run(asked), run(asked)
    drop = {"train_seconds"}
    assert {k: v for k, v in first.metrics.items() if k not in drop} == {
        k: v for k, v in second.metrics.items() if k not in drop
    }


def test_another_seed_gives_another_result() -> None:
    asked = cell()
    assert run(asked).metrics["test_loss"] != run(replace(asked, seed=1)).metrics["test_loss"]


def test_seeds_are_paired_across_methods() -> None:
    dataset = data.load("embedded:digits")
    bn, _ = accuracy.build_model(cell("batch_norm"), dataset, CPU)
    gn, _ = accuracy.build_model(cell("group_norm"), dataset, CPU)
    kinds = (nn.Conv2d, nn.Linear)
    bn_weights = {n: m.weight for n, m in bn.named_modules() if isinstance(m, kinds)}
    gn_weights = {n: m.weight for n, m in gn.named_modules() if isinstance(m, kinds)}
    assert bn_weights.keys() == gn_weights.keys()
    assert all(torch.equal(bn_weights[n], gn_weights[n]) for n in bn_weights)
    assert len(bn_weights) == 13  # ten layers and three shortcuts


def test_smallest_number_of_values_per_channel_is_recorded() -> None:
    assert run(cell()).metrics["min_values_per_channel"] == 16  # 1×1 maps, batch 16
    outcome = run(cell(model="nb_resnet10_4x4", batch_size=4))
    assert outcome.metrics["min_values_per_channel"] == 4 * 4 * 4


def test_divergence_is_a_result_with_its_reason() -> None:
    outcome = run(cell(config={"lr": 1e30, "warmup_fraction": 0.0}))
    assert outcome.status == "diverged"
    assert "training loss is" in outcome.reason
    assert "test_accuracy" not in outcome.metrics


def test_evaluation_that_is_not_finite_is_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "evaluate", lambda *args, **kwargs: (0.1, float("nan")))
    outcome = run(cell())
    assert outcome.status == "diverged"
    assert "test loss is nan" in outcome.reason


def test_record_says_which_data_it_saw() -> None:
    assert run(cell()).data_fingerprint == data.load("embedded:digits").fingerprint


def test_recalibration_tests_a_second_time_and_changes_nothing_of_the_first() -> None:
    plain, twice = run(cell()), run(cell(config={"recalibrate": 10}))
    added = {"recalibrated_test_accuracy", "recalibrated_test_loss", "estimation_shift"}
    assert set(twice.metrics) - set(plain.metrics) == added
    assert twice.metrics["test_accuracy"] == plain.metrics["test_accuracy"]
    # after 20 steps averages with momentum 0.1 still remember their start: taking them anew helps
    assert twice.metrics["estimation_shift"] > 0.02
    assert twice.metrics["recalibrated_test_loss"] < plain.metrics["test_loss"]


def test_without_running_statistics_recalibration_is_a_note() -> None:
    outcome = run(cell("group_norm", config={"recalibrate": 10}))
    assert "recalibrated_test_accuracy" not in outcome.metrics
    assert "there are no running statistics to recalibrate" in outcome.notes


def test_tuning_looks_at_validation_and_records_every_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = data.load("embedded:digits")
    monkeypatch.setattr(accuracy.data, "load", lambda *args, **kwargs: dataset)
    evaluated: list[int] = []
    evaluate = accuracy.evaluate

    def watch(model: nn.Module, split: data.Split, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(id(split))
        return evaluate(model, split, *args, **kwargs)

    monkeypatch.setattr(accuracy, "evaluate", watch)
    tune = {"grid": {"lr": [1e-6, 0.2]}, "samples": 320, "metric": "validation_accuracy"}
    outcome = run(cell(config={"tune": tune}))
    assert [trial["config"] for trial in outcome.trials] == [{"lr": 1e-6}, {"lr": 0.2}]
    scores = [trial["metrics"]["validation_accuracy"] for trial in outcome.trials]
    assert scores[1] > scores[0]
    assert outcome.curve[-1]["lr"] > 1e-6  # the winner was used
    assert evaluated.count(id(dataset.test)) == 1
    assert evaluated[-1] == id(dataset.test)


def test_micro_batches_are_real() -> None:
    """`accumulate` changes the optimizer's batch, never the one that statistics see."""
    outcome = run(cell(config={"accumulate": 4}))
    assert outcome.metrics["steps"] == 20
    assert outcome.metrics["samples_seen"] == 20 * 4 * 16
    assert outcome.metrics["min_values_per_channel"] == 16


@pytest.mark.parametrize("accumulate", [1, 3])
def test_schedule_of_batch_renorm_is_told_the_length_of_training(accumulate: int) -> None:
    params = {"schedule": "fraction", "hold": 0.5, "rmax_full": 0.6, "dmax_full": 0.6}
    outcome = run(cell("batch_renorm", params, {"accumulate": accumulate}))
    assert outcome.metrics["renorm_active_share"] == pytest.approx(0.5, abs=0.05)


def test_progress_reaches_the_end() -> None:
    seen: list[float] = []
    accuracy.run(cell(), CPU, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)


def test_one_value_per_channel_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="values per channel"):
        run(cell(batch_size=1))


def test_group_norm_takes_a_batch_of_one() -> None:
    assert run(cell("group_norm", batch_size=1)).status == "ok"


def test_cells_are_not_changed_by_running_them() -> None:
    asked = cell()
    before = copy.deepcopy(asked)
    run(asked)
    assert asked == before
