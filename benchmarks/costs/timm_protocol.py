"""timm's training benchmark, as its benchmark.py defines it: the independent reference.

10 untimed steps, then 40; forward, backward and optimizer's step each between two readings of the
clock, the device synchronised before each reading; timm's own optimizer. Written from what
TrainBenchmarkRunner of huggingface/pytorch-image-models does (its script is not in the package).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import timm.optim
import torch
from torch import Tensor, nn

WARM_UP, ITERATIONS = 10, 40


class TimmStep:
    """A training step in timm's three parts."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.loss = nn.CrossEntropyLoss()
        # As timm's script makes it, but with lr 0, so that neither moves away from the other.
        self.optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.0)

    def seconds(self) -> tuple[float, float, float]:
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
        return after_forward - start, after_backward - after_forward, end - after_backward

    def _now(self) -> float:
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)
        return time.perf_counter()


def interleaved(timm_step: TimmStep, ours: Callable[[], float]) -> tuple[list[float], list[float]]:
    """timm's protocol, an iteration of it and one of ours in turn: total seconds of each."""
    for _ in range(WARM_UP):
        timm_step.seconds()
        ours()
    theirs: list[float] = []
    own: list[float] = []
    for turn in range(ITERATIONS):
        for side in (0, 1) if turn % 2 else (1, 0):
            if side:
                theirs.append(sum(timm_step.seconds()))
            else:
                own.append(ours())
    return theirs, own
