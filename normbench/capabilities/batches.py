"""How the method depends on the batch, and where it is defined."""

from __future__ import annotations

import copy

import torch

from normbench.capabilities.probe import Answer, probe, sentence
from normbench.capabilities.subject import Subject, change, gradients


@probe("batch independent")
def batch_independent(subject: Subject) -> Answer:
    """In training no sample depends on its neighbours: ∂f(x_i)/∂x_j is exactly 0 for j ≠ i.

    Nor may other neighbours change a sample's output by more than 1e-12, in float64: what enters
    the statistics without a gradient counts too.
    """
    layer = subject.varied()
    x = subject.images(4, subject.settings["channels"], 7, 7, dtype=torch.float64)
    x.requires_grad_()
    other = x.detach().clone()
    other[1:] = subject.images(*other[1:].shape, dtype=torch.float64)
    moved = copy.deepcopy(layer)(other)[:1]
    y = layer(x)
    weights = torch.randn(y.shape, dtype=torch.float64).to(y.device)
    largest = 0.0
    for i in range(len(x)):
        (g,) = torch.autograd.grad((y[i] * weights[i]).sum(), x, retain_graph=True)
        largest = max(largest, float(torch.cat([g[:i], g[i + 1 :]]).abs().max()))
    if largest > 0:
        return Answer(False, f"max |∂f(x_i)/∂x_j| is {largest:.2g}")
    if (moved_by := change(moved, y[:1])) > 1e-12:
        return Answer(
            False, f"no gradient, but other neighbours change the output by {moved_by:.2g}"
        )
    return Answer(True)


@probe("batch of 1")
def batch_of_one(subject: Subject) -> Answer:
    """Trains on a single image with 28×28 maps.

    Output and gradients are finite, and the output differs between two images.
    """
    return _trains_on(subject, 28)


@probe("1 value per channel")
def one_value_per_channel(subject: Subject) -> Answer:
    """Trains on a single image with 1×1 maps, so that each channel has one value.

    Output and gradients are finite, and the output differs between two images.
    """
    return _trains_on(subject, 1)


def _trains_on(subject: Subject, side: int) -> Answer:
    layer = subject.layer()
    shape = (1, subject.settings["channels"], side, side)
    x, other = subject.images(*shape).requires_grad_(), subject.images(*shape)
    try:
        elsewhere = copy.deepcopy(layer)(other)
        y = layer(x)
        found = gradients(y, layer, x)
    except Exception as error:
        return Answer(False, sentence(error))
    if not torch.isfinite(y).all():
        return Answer(False, "the output is not finite")
    if not all(torch.isfinite(g).all() for g in found):
        return Answer(False, "a gradient is not finite")
    if change(elsewhere, y) < 1e-6:
        return Answer(False, "the output is the same for different images")
    return Answer(True)


@probe("train/eval gap", unit="relative", alone="own")
def train_eval_gap(subject: Subject) -> Answer:
    """‖f_train − f_eval‖ / ‖f_eval‖ on a new batch, after 50 training forwards.

    All batches are drawn from one distribution, so what is left is noise of the batch's statistics
    and averages that have not arrived yet.
    """
    layer = subject.layer()
    with torch.no_grad():
        for _ in range(subject.settings["forwards"]):
            layer(subject.images())
        x = subject.images()
        trained = copy.deepcopy(layer)(x)
        return Answer(change(trained, layer.eval()(x)))


@probe("worst channel mean", unit="absolute", alone="own")
def channel_mean(subject: Subject) -> Answer:
    """Largest |mean| of a channel's output over the batch in training.

    The input's channels have means of about ±1.
    """
    y = _output(subject)
    return Answer(float(y.mean((0, 2, 3)).abs().max()))


@probe("worst channel variance", unit="|var − 1|", alone="own")
def channel_variance(subject: Subject) -> Answer:
    """Largest |variance − 1| of a channel's output over the batch in training.

    The input's channels have deviations of 0.5 to 2.
    """
    y = _output(subject)
    return Answer(float((y.var((0, 2, 3), correction=0) - 1).abs().max()))


def _output(subject: Subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.layer().double()(subject.images(dtype=torch.float64))  # type: ignore[no-any-return]
