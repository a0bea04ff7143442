"""What a method does where its statistics hardly exist: tried on the layer, said in one word."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from normbench import registry
from normbench.registry import TrainingPlan


@dataclass(frozen=True, slots=True)
class EdgeCase:
    """A shape that some methods are not defined on.

    Attributes:
        heading: what it is called in tables.
        shape: of the input, N,C,*.
    """

    heading: str
    shape: tuple[int, ...]


EDGE_CASES = (
    EdgeCase("batch of one", (1, 64, 14, 14)),
    EdgeCase("1×1 maps", (8, 64, 1, 1)),
    EdgeCase("one value per channel", (1, 64, 1, 1)),
    EdgeCase("N,C", (8, 64)),
    EdgeCase("N,C,L", (8, 64, 5)),
    EdgeCase("N,C,D,H,W", (2, 64, 3, 4, 4)),
    EdgeCase("7 channels", (8, 7, 5, 5)),
    EdgeCase("one channel", (8, 1, 5, 5)),
)


def behaviour(method: str, case: EdgeCase) -> str:
    """What a training step does: `works`, `refuses`, `constant` or `not finite`.

    `refuses` is a ValueError, `constant` an output that two random inputs have in common. The
    layer has its default parameters, and a ReLU if it owns the activation.

    Raises:
        Exception: any other than ValueError that the layer raises, which it never should.
    """
    info = registry.get(method)
    act = nn.ReLU() if info.consumes_activation else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = registry.build(method, case.shape[1], act=act)
        if info.prepare is not None:
            info.prepare(layer, TrainingPlan(total_steps=100))
        twin = copy.deepcopy(layer)
        x, other = (torch.randn(case.shape) for _ in range(2))
    x.requires_grad_()
    try:
        y = layer(x)
        y.square().sum().backward()
        twice = twin(other)
    except ValueError:
        return "refuses"
    if not (y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()):
        return "not finite"
    return "constant" if torch.equal(y, twice) else "works"
