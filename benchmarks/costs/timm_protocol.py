"""timm's training benchmark, as its benchmark.py defines it: the independent reference.

10 untimed steps, then 40; forward, backward and optimizer's step each between two readings of the
clock, the device synchronised before each reading. Written from what TrainBenchmarkRunner of
huggingface/pytorch-image-models does (its script is not in the package).
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WARM_UP, ITERATIONS = 10, 40


class TimmStep:
    """A training step in timm's three parts."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, optimizer: Optimizer
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = optimizer

    def seconds(self) -> float:
        """Of one iteration; the device has finished each part before the next begins."""
        start = self._now()
        loss = self.loss(self.model(self.images), self.labels)
        self._now()
        loss.backward()
        self._now()
        self.optimizer.step()
        end = self._now()
        # The model is ours as well: our backward must not find gradients to add to.
        self.optimizer.zero_grad()
        return end - start

    def _now(self) -> float:
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)
        return time.perf_counter()
