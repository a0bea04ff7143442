"""Every method in real models: ten steps with finite loss, or a refusal before the first."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import normbench
from normbench import registry
from normbench.registry import TrainingPlan

STEPS = 10
SAMPLED = ("test_resnet", "test_efficientnet")
FAMILIES = (
    "resnet18", "resnetv2_50", "mobilenetv3_small_050", "regnetx_002", "densenet121", "vgg11_bn",
    "inception_v3", "hrnet_w18_small", "repvgg_a0", "dla34", "ghostnet_050", "convmixer_768_32",
    "convnext_atto", "test_byobnet", "test_vit", "test_maxvit", "mixer_s32_224", "skresnet18",
)  # fmt: skip
"""A small member of each of these families."""
COVERAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


def train(model: nn.Module, method: str, side: int) -> list[float]:
    """Losses of ten SGD steps on random images.

    Steps are small and gradients clipped, as methods without statistics of the batch or the sample
    (scaled_ws, weight_norm) are trained: without, their larger networks diverge within three steps.
    """
    info = registry.get(method)
    if info.prepare is not None:
        info.prepare(model, TrainingPlan(total_steps=STEPS))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    x, target = torch.randn(4, 3, side, side), torch.arange(4)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(x), target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        assert torch.isfinite(model.eval()(x)).all()
    return losses


def check(method: str, name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        report = normbench.swap(model, method)
    except ValueError as refusal:  # defined behaviour: said before training, nothing changed
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        pytest.skip(f"{method} refuses {name}: {refusal}")
    if any("proved in evaluation only" in note for note in report.notes):
        pytest.skip(f"{method} does not train on {name} at {report.input_shape}: {report.notes}")
    losses = train(model, method, report.input_shape[-1])
    assert all(map(math.isfinite, losses)), losses


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("method", normbench.list_methods())
def test_ten_steps_have_finite_loss_or_the_swap_refuses(method: str, name: str) -> None:
    check(method, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", normbench.list_methods())
def test_many_families(method: str, name: str) -> None:
    check(method, name)


def members() -> list[str]:
    """The model of every family in docs/coverage.md."""
    rows = re.findall(r"^\| \w+ \| (\w+) \| [\d.]+ \|", COVERAGE.read_text("utf-8"), re.M)
    assert len(rows) > 90
    return rows


@pytest.mark.slow
@pytest.mark.matrix  # hours: -k takes a part of it
@pytest.mark.parametrize("name", members())
@pytest.mark.parametrize("method", normbench.list_methods())
def test_the_whole_matrix(method: str, name: str) -> None:
    check(method, name)
