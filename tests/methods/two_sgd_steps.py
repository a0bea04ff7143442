"""A timm model with a method in its slots, trained for two steps."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

import normbench


def losses_of_two_steps(architecture: str, method: str, **params: Any) -> tuple[nn.Module, list]:
    """The trained model and its losses: before each of two SGD steps, and after."""
    model = timm.create_model(architecture, num_classes=10)
    report = normbench.swap(model, method, **params)
    assert report.replaced == report.found > 10
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, losses
