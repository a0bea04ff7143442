"""Pretrained weights of `nn.BatchNorm2d`, and what is left of the layer at inference."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from normbench.capabilities.probe import Answer, probe
from normbench.capabilities.subject import Subject, change

CARRIED = 0.01
"""Relative change of the evaluation output below which weights have carried over."""

EXACT = 1e-9
"""Relative difference in float64 that rounding alone may make."""


@probe("BatchNorm2d's keys")
def loads_batch_norm_keys(subject: Subject) -> Answer:
    """load_state_dict takes a trained nn.BatchNorm2d's state strictly and evaluates like it.

    The evaluation output changes by less than 1%.
    """
    norm = nn.BatchNorm2d(subject.settings["channels"]).to(subject.device)
    _vary(norm)
    for _ in range(20):
        norm(subject.images())
    layer = subject.without_activation().layer()
    try:
        layer.load_state_dict(norm.state_dict(), strict=True)
    except RuntimeError as error:
        return Answer(False, "; ".join(line.strip() for line in str(error).splitlines()[1:]))
    return _carried(layer, norm, subject.images())


@probe("pretrained weights")
def carries_pretrained(subject: Subject) -> Answer:
    """Swapped for nn.BatchNorm2d in a trained network, it leaves the evaluation output as it was.

    Three convolutions with BatchNorm, two of them a residual branch, and a linear layer, trained
    for 20 steps; the method is put in by `normbench.swap`. The output changes by less than 1%.
    """
    model = network(subject.settings["channels"]).to(subject.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        labels = torch.randint(10, (subject.batch,)).to(subject.device)
        loss = nn.functional.cross_entropy(model(_pictures(subject)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    swapped = copy.deepcopy(model)
    subject.operate(swapped, _pictures(subject))
    return _carried(swapped, model, _pictures(subject))


class Residual(nn.Module):
    """x plus what the modules make of it, through a ReLU."""

    has_skip = True  # as timm's blocks say it: some methods want to know residual branches

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the modules keep."""
        return nn.functional.relu(x + self.branch(x))


def network(channels: int) -> nn.Sequential:
    """A small residual network; every slot has a convolution before it."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        Residual(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        ),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10),
    )  # fmt: skip


def _pictures(subject: Subject) -> Tensor:
    side = subject.settings["side"]
    return subject.images(subject.batch, 3, side, side)


def _vary(norm: nn.BatchNorm2d) -> None:
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()


def _carried(new: nn.Module, old: nn.Module, x: Tensor) -> Answer:
    with torch.no_grad():
        by = change(new.eval()(x), old.eval()(x))
    return Answer(by < CARRIED, f"the evaluation output changes by {by:.2g}")


@probe("folds into conv")
def folds_into_convolution(subject: Subject) -> Answer:
    """In evaluation, its activation aside, it is one scale and one shift per channel.

    Those a convolution before it can absorb. Tested on numbers: f(a+b) − f(b) = f(a) − f(0), no
    effect of a channel on another, none of a position on another (to 1e-9 in float64).
    """
    layer = subject.without_activation().varied()
    a, b = (subject.images(dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        layer(a)
        layer.eval()
        zero, one = layer(torch.zeros_like(a)), layer(torch.ones_like(a))
        if (by := change(layer(a + b) - layer(b), layer(a) - zero)) > EXACT:
            return Answer(False, f"not linear in its input: f(a+b) − f(b) is off by {by:.2g}")
        touched = a.clone()
        touched[:, 0] += b[:, 0]
        if (by := change(layer(touched)[:, 1:], layer(a)[:, 1:])) > EXACT:
            return Answer(False, f"channels affect each other: by {by:.2g}")
        slope, shift = ((one - zero)[:1, :, :1, :1], zero[:1, :, :1, :1])
        if (by := change(slope * a + shift, layer(a))) > EXACT:
            return Answer(False, f"positions or samples are not treated alike: by {by:.2g}")
    return Answer(True)
