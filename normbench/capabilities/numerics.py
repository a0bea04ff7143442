"""Layouts, half precision, second derivatives, repeatability."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normbench.capabilities.probe import Answer, probe, sentence
from normbench.capabilities.subject import Subject, change, gradients


@probe("keeps channels_last")
def keeps_channels_last(subject: Subject) -> Answer:
    """A channels_last input gives a channels_last output, in training and in evaluation."""
    layer = subject.layer()
    x = subject.images().contiguous(memory_format=torch.channels_last)
    for mode in ("training", "evaluation"):
        y = layer.train(mode == "training")(x)
        if not y.is_contiguous(memory_format=torch.channels_last):
            return Answer(False, f"the output in {mode} has strides {tuple(y.stride())}")
    return Answer(True)


@probe("bf16 finite")
def autocast_bf16_finite(subject: Subject) -> Answer:
    """Under autocast to bfloat16 output and gradients are finite, for an input of 300 ± 300."""
    return _finite(subject, torch.bfloat16)


@probe("fp16 finite")
def autocast_fp16_finite(subject: Subject) -> Answer:
    """Under autocast to float16 output and gradients are finite, for an input of 300 ± 300.

    Float16 cannot hold its squares.
    """
    return _finite(subject, torch.float16)


@probe("bf16 error", unit="relative")
def autocast_bf16_error(subject: Subject) -> Answer:
    """‖f_bf16 − f_float64‖ / ‖f_float64‖ in training under autocast, for an input of 10 ± 1.

    Both get the same rounded input. To round the output alone costs about 0.002.
    """
    return _error(subject, torch.bfloat16)


@probe("fp16 error", unit="relative")
def autocast_fp16_error(subject: Subject) -> Answer:
    """‖f_fp16 − f_float64‖ / ‖f_float64‖ in training under autocast, for an input of 10 ± 1.

    Both get the same rounded input. To round the output alone costs about 0.0002.
    """
    return _error(subject, torch.float16)


def _finite(subject: Subject, half: torch.dtype) -> Answer:
    x = (300 * _standard(subject) + 300).to(half).requires_grad_()
    layer = subject.layer()
    try:
        with torch.autocast(subject.device.type, dtype=half):
            y = layer(x)
        found = gradients(y, layer, x)
    except Exception as error:
        return Answer(False, sentence(error))
    if not torch.isfinite(y).all():
        return Answer(False, "the output is not finite")
    if not all(torch.isfinite(g).all() for g in found):
        return Answer(False, "a gradient is not finite")
    return Answer(True)


def _error(subject: Subject, half: torch.dtype) -> Answer:
    x = (_standard(subject) + 10).to(half)
    layer = subject.layer()
    exact = copy.deepcopy(layer).double()(x.double())
    with torch.no_grad(), torch.autocast(subject.device.type, dtype=half):
        return Answer(change(layer(x), exact))


def _standard(subject: Subject) -> Tensor:
    side = subject.settings["side"]
    return torch.randn(subject.batch, subject.settings["channels"], side, side).to(subject.device)


@probe("double backward", alone="own")
def double_backward(subject: Subject) -> Answer:
    """Gradients of the first training step can be differentiated again, and rightly.

    A gradient penalty must run, then gradgradcheck on 3×8×2×2 in float64 must pass.
    """
    layer = subject.varied(8)
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    x = subject.images(3, 8, 2, 2, dtype=torch.float64).requires_grad_()
    learned = [p.detach().clone().requires_grad_() for p in layer.parameters() if p.requires_grad]

    def from_the_same_state(*inputs: Tensor) -> Tensor:
        twin = copy.deepcopy(layer)
        return functional_call(twin, dict(zip(names, inputs[1:], strict=True)), (inputs[0],))  # type: ignore[no-any-return]

    try:
        # gradgradcheck takes a derivative that refuses to be taken for one that is zero.
        (slope,) = torch.autograd.grad(
            from_the_same_state(x, *learned).square().sum(), x, create_graph=True
        )
        slope.square().sum().backward()  # type: ignore[no-untyped-call]
        torch.autograd.gradgradcheck(from_the_same_state, (x, *learned), fast_mode=True)
    except RuntimeError as error:  # GradcheckError is one
        return Answer(False, sentence(error))
    return Answer(True)


@probe("deterministic")
def deterministic(subject: Subject) -> Answer:
    """Two training steps give bitwise the same output, gradients and buffers, three times over."""
    layer, batches = subject.layer(), [subject.images(), subject.images()]
    projection = torch.randn_like(batches[0])
    first = _steps(copy.deepcopy(layer), batches, projection)
    for _ in range(2):
        again = _steps(copy.deepcopy(layer), batches, projection)
        different = [name for name in first if not torch.equal(first[name], again[name])]
        if different:
            return Answer(False, f"differs between reruns: {', '.join(different)}")
    return Answer(True)


def _steps(layer: nn.Module, batches: list[Tensor], projection: Tensor) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for batch in batches:
        x = batch.clone().requires_grad_()
        y = layer(x)
        learned = dict(layer.named_parameters())
        found = torch.autograd.grad(y, [x, *learned.values()], projection, materialize_grads=True)
        gradient = dict(zip(["input", *learned], found, strict=True))
        results = {"output": y} | {f"gradient of {name}": g for name, g in gradient.items()}
    return results | dict(layer.named_buffers())
