"""Which changes of its input, or of the weights before it, the method undoes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from normbench.capabilities.probe import Answer, probe
from normbench.capabilities.subject import Subject, change

FACTOR = 10.0
"""Scale and shift that are tried, larger than the input's own."""

INVARIANT = 0.01
"""Relative change of the output below which it counts as unchanged: eps leaves a little."""


@probe("input scale", alone="own")
def input_scale_invariant(subject: Subject) -> Answer:
    """Training output changes by less than 1% when the whole input is multiplied by 10."""
    x = subject.images(dtype=torch.float64)
    return _compared(subject, x, FACTOR * x)


@probe("channel scale", alone="own")
def channel_scale_invariant(subject: Subject) -> Answer:
    """Training output changes by less than 1% when channels are multiplied by 1 to 10 each."""
    x = subject.images(dtype=torch.float64)
    return _compared(subject, x, x * (1 + (FACTOR - 1) * _per_channel(x)))


@probe("input shift", alone="own")
def input_shift_invariant(subject: Subject) -> Answer:
    """Training output changes by less than 1% when 10 is added to the whole input."""
    x = subject.images(dtype=torch.float64)
    return _compared(subject, x, x + FACTOR)


@probe("channel shift", alone="own")
def channel_shift_invariant(subject: Subject) -> Answer:
    """Training output changes by less than 1% when 0 to 10 is added to each channel.

    Each gets a number of its own, as from a convolution's bias.
    """
    x = subject.images(dtype=torch.float64)
    return _compared(subject, x, x + FACTOR * _per_channel(x))


@probe("weight scale", alone="own")
def weight_scale_invariant(subject: Subject) -> Answer:
    """Training output of convolution and layer changes by less than 1% when filters grow tenfold.

    The method's weight side is applied to the convolution; what is multiplied are the learned
    filters, not those that it makes of them.
    """
    model = subject.convolved()
    scaled = copy.deepcopy(model)
    shape = (subject.settings["channels"], 16, 3, 3)
    with torch.no_grad():
        learned = [p for p in scaled[0].parameters() if p.shape == shape]
        for filters in learned:
            filters.mul_(FACTOR)
        if not learned:
            return Answer(None, "undefined: the convolution has no filters to scale")
        side = subject.settings["side"]
        x = subject.images(subject.batch, 16, side, side, dtype=torch.float64)
        return _judged(change(scaled(x), model(x)))


def _per_channel(x: Tensor) -> Tensor:
    return torch.rand(x.shape[1], 1, 1, dtype=torch.float64).to(x.device)


def _compared(subject: Subject, x: Tensor, changed: Tensor) -> Answer:
    layer = subject.varied()
    with torch.no_grad():
        return _judged(change(copy.deepcopy(layer)(changed), layer(x)))


def _judged(by: float) -> Answer:
    return Answer(by < INVARIANT, f"changes by {by:.2g}")
