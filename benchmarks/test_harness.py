"""What the harness costs: a cell's training step against a bare PyTorch loop on the same cell.

The bare loop is what one would write by hand for this cell alone: same network, same swapped
layers, same batches held in memory, same optimizer and schedule. Rounds of both alternate, because
machines drift; the figure is the median of the per-round ratios. Target: at most 1.03. Both start
from the same weights and see the same batches, so they must end with the same weights.

    pytest benchmarks/test_harness.py -s        # prints the ratios
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normbench import data, surgery
from normbench.tasks import training

CPU = torch.device("cpu")
STEPS = 100
ROUNDS = 15
CONFIG: dict[str, Any] = {
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
}


def network() -> nn.Module:
    import timm

    import normbench.networks  # noqa: F401  # registers the network

    torch.manual_seed(0)
    model = timm.create_model("nb_resnet10_1x1")
    surgery.swap(model, "batch_norm")
    return model


def bare_loop(model: nn.Module, split: data.Split, batch_size: int) -> None:
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}],
        lr=0.0,
        momentum=0.9,
        fused=True,
    )
    peak = 0.1 * batch_size / 128
    batches = split.batches(batch_size, seed=0, epoch=0, device=CPU, drop_last=True)
    model.train()
    for step in range(STEPS):
        if step < 5:
            lr = peak * (step + 1) / 6
        else:
            lr = peak * 0.5 * (1 + math.cos(math.pi * (step - 5) / (STEPS - 5)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        images, labels = next(batches)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def harness_loop(model: nn.Module, split: data.Split, batch_size: int) -> None:
    training.train(
        model,
        split,
        CONFIG,
        training.Conditions(batch_size, seed=0, precision="fp32", device=CPU),
        steps=STEPS,
        checkpoints={STEPS},
        on_checkpoint=lambda at: None,
        progress=lambda fraction: None,
    )


@pytest.mark.parametrize("batch_size", [2, 32])
def test_training_step_against_a_bare_loop(benchmark: Any, batch_size: int) -> None:
    torch.set_num_threads(1)
    split = data.load("embedded:mnist").train
    models = {bare_loop: network(), harness_loop: network()}
    ratios, bare_seconds = [], []
    for _ in range(ROUNDS):
        took = {}
        for loop, model in models.items():
            began = time.perf_counter()
            loop(model, split, batch_size)
            took[loop] = time.perf_counter() - began
        ratios.append(took[harness_loop] / took[bare_loop])
        bare_seconds.append(took[bare_loop] / STEPS)
    trained = [dict(model.named_parameters()) for model in models.values()]
    for name, parameter in trained[0].items():
        assert torch.equal(parameter, trained[1][name]), name
    ratio = statistics.median(ratios)
    benchmark.group = "harness overhead per training step"
    benchmark.extra_info["ratio_to_bare_loop"] = ratio
    benchmark.extra_info["bare_step_ms"] = 1e3 * statistics.median(bare_seconds)
    benchmark.pedantic(
        harness_loop, args=(models[harness_loop], split, batch_size), rounds=3, iterations=1
    )
    print(
        f"\nbatch {batch_size}: bare step {1e3 * statistics.median(bare_seconds):.2f} ms, "
        f"harness / bare {ratio:.3f} (median of {ROUNDS} rounds), target 1.03"
    )
