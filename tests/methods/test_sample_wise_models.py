"""Each of these methods in whole models."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

import normbench

METHODS = [
    "rms_norm", "filter_response_norm", "evonorm_s0", "evonorm_b0", "dyt", "derf",
    "local_response_norm", "batch_instance_norm",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_model_trains(method, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    report = normbench.swap(model, method)
    assert report.replaced == report.found
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4))
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in model.parameters())
