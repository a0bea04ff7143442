"""What the method costs: memory kept for backward, state, passes over the activation, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normbench.capabilities.probe import Answer, probe
from normbench.capabilities.subject import Subject
from normbench.timing import saved

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
"""Aten ops that touch no element, beside the views."""


@probe("saved", unit="bytes per element", alone="always")
def saved_bytes(subject: Subject) -> Answer:
    """Bytes that autograd keeps for backward per element of the activation, ReLU included.

    In float32. Each storage counts once, the input too if it is saved; parameters and buffers do
    not. What a function keeps by other ways than autograd's is not seen.
    """
    slot = subject.slot()
    x = subject.activations().requires_grad_() + 0  # as in a network: not a leaf
    return Answer(saved.saved_bytes(slot, lambda: slot(x)).total / x.numel())


@probe("parameters", unit="per channel", alone="own")
def parameters_per_channel(subject: Subject) -> Answer:
    """Learned numbers of the layer, divided by its channels (64)."""
    return _per_channel(subject, subject.layer().parameters())


@probe("buffers", unit="per channel", alone="own")
def buffers_per_channel(subject: Subject) -> Answer:
    """Numbers in the buffers of its checkpoint, divided by the channels (64).

    Buffers of a single number, such as counters, do not count.
    """
    layer = subject.layer()
    learned = dict(layer.named_parameters())
    return _per_channel(subject, [t for n, t in layer.state_dict().items() if n not in learned])


def _per_channel(subject: Subject, tensors: Sequence[Tensor] | Iterator[nn.Parameter]) -> Answer:
    return Answer(sum(t.numel() for t in tensors if t.dim()) / subject.settings["channels"])


class _Passes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the elements that aten ops go over, in units of `elements`."""

    def __init__(self, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.count = elements, 0.0

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in FREE:
            leaves = tree_leaves((args, kwargs, out))
            sizes = [leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)]
            self.count += max(sizes, default=0) / self.elements
        return out


@probe("forward passes", unit="passes", alone="always")
def passes_forward(subject: Subject) -> Answer:
    """Passes of aten ops over the activation in a training forward, ReLU included.

    Each op counts by its largest tensor, relative to the activation. A fused op counts once
    although it may read its input more often, views do not count: a lower bound of the traffic.
    """
    return Answer(_passes(subject)[0])


@probe("backward passes", unit="passes", alone="always")
def passes_backward(subject: Subject) -> Answer:
    """Passes of aten ops over the activation in the backward, to the input and all parameters.

    Counted as in `passes_forward`.
    """
    return Answer(_passes(subject)[1])


def _passes(subject: Subject) -> tuple[float, float]:
    slot, x = subject.slot(), subject.activations().requires_grad_()
    wanted = [x, *(p for p in slot.parameters() if p.requires_grad)]
    with _Passes(x.numel()) as forward:
        y = slot(x)
    gradient = torch.randn_like(y)
    with _Passes(x.numel()) as backward:
        torch.autograd.grad(y, wanted, gradient, allow_unused=True)
    return round(forward.count, 2), round(backward.count, 2)


@probe("time", unit="× BatchNorm2d", alone="always")
def time_ratio(subject: Subject) -> Answer:
    """Time of forward and backward relative to nn.BatchNorm2d, ReLU included in both.

    Median ratio of 30 interleaved rounds in one process at 8×64×28×28, float32. On a CPU it is the
    process's CPU time, so that other work on the machine disturbs less; it is noisy all the same.
    """
    x = subject.activations().requires_grad_()
    gradient = torch.randn_like(x)
    ours = _step(subject.slot(), x, gradient)
    theirs = _step(subject.reference(), x, gradient)
    for step in [ours, theirs] * 3:
        step()
    ratios = []
    for turn in range(subject.settings["rounds"]):
        order = (ours, theirs) if turn % 2 == 0 else (theirs, ours)
        took = {step: _seconds(step, x) for step in order}
        ratios.append(took[ours] / took[theirs])
    ratios.sort()
    low, high = ratios[len(ratios) // 5], ratios[-1 - len(ratios) // 5]
    return Answer(statistics.median(ratios), f"p20 {low:.2f}, p80 {high:.2f}")


def _step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], None]:
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def step() -> None:
        torch.autograd.grad(layer(x), wanted, gradient, allow_unused=True)

    return step


def _seconds(step: Callable[[], None], x: Tensor) -> float:
    if not x.is_cuda:
        began = time.process_time_ns()
        step()
        return (time.process_time_ns() - began) * 1e-9
    torch.cuda.synchronize(x.device)
    began = time.perf_counter_ns()
    step()
    torch.cuda.synchronize(x.device)
    return (time.perf_counter_ns() - began) * 1e-9
