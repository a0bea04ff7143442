"""timm's training benchmark, as its benchmark.py defines it: the independent reference.

10 untimed steps, then 40; forward, backward and optimizer's step each between two readings of the
clock, the device synchronised before each reading. Written from what TrainBenchmarkRunner of
huggingface/pytorch-image-models does (its script is not in the package).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WARM_UP, ITERATIONS = 10, 40


class TimmStep:
    """A training step in timm's three parts."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, optimizer: Optimizer):
        self.model, self.images, self.labels = model, images, labels
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = optimizer

    def seconds(self) -> float:
        """Forward, backward and step of one iteration."""
        start = self._now()
        loss = self.loss(self.model(self.images), self.labels)
        after_forward = self._now()
        loss.backward()
        after_backward = self._now()
        self.optimizer.step()
        end = self._now()
        # The model is ours as well: our backward must not find gradients to add to.
        self.optimizer.zero_grad()
        return (after_forward - start) + (after_backward - after_forward) + (end - after_backward)

    def _now(self) -> float:
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)
        return time.perf_counter()


def interleaved(runs: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """timm's number of iterations of all, in turns, each turn beginning with another: seconds."""
    names = list(runs)
    for name in names * WARM_UP:
        runs[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ITERATIONS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(runs[name]())
    return taken
