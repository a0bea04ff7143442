from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from normbench.tasks.training import learning_rate, optimizer_for, peak_lr, total_steps

CONFIG: dict[str, Any] = {
    "samples": 1000,
    "epochs": None,
    "min_steps": 30,
    "accumulate": 1,
    "lr": 0.1,
    "lr_reference_batch": 128,
    "lr_scaling": "linear",
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup_fraction": 0.1,
}


@pytest.mark.parametrize(
    ("change", "batch", "steps"),
    [
        ({}, 8, 125),
        ({}, 3, 334),  # rounded up: the budget is never undercut
        ({}, 128, 30),  # min_steps
        ({"accumulate": 4}, 8, 32),
        ({"samples": None, "epochs": 2}, 10, 100),  # 2 epochs of 500 samples
    ],
)
def test_steps_fill_the_budget(change: dict[str, Any], batch: int, steps: int) -> None:
    assert total_steps({**CONFIG, **change}, batch, 500) == steps


@pytest.mark.parametrize(("rule", "lr"), [("linear", 0.05), ("sqrt", 0.1 / 2**0.5), ("none", 0.1)])
def test_peak_lr_scales_with_the_optimizers_batch(rule: str, lr: float) -> None:
    config = {**CONFIG, "lr_scaling": rule, "accumulate": 2}
    assert peak_lr(config, 32) == pytest.approx(lr)


def test_schedule_warms_up_then_falls_to_zero() -> None:
    rates = [learning_rate(CONFIG, 1.0, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate({**CONFIG, "schedule": "constant"}, 1.0, 99, 100) == 1.0


def test_weight_decay_leaves_out_norms_and_biases() -> None:
    class Decayed(nn.Module):
        decayed_parameters = ("scale",)

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(3))
            self.weight = nn.Parameter(torch.ones(3))

    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), Decayed())
    groups = {g["weight_decay"]: g["params"] for g in optimizer_for(model, CONFIG).param_groups}
    assert {id(p) for p in groups[5e-4]} == {id(model[0].weight), id(model[2].scale)}
    assert len(groups[0.0]) == 4


def test_warmup_of_zero_starts_at_the_peak() -> None:
    assert learning_rate({**CONFIG, "warmup_fraction": 0.0}, 0.3, 0, 10) == pytest.approx(0.3)
    assert math.isfinite(learning_rate(CONFIG, 0.3, 0, 1))
