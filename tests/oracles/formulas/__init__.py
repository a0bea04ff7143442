"""Every method, written out from its paper in plain float64 torch; one file per family.

The contract (tests/contract/test_formulas.py) holds each layer's output, gradients and state
against these over several training steps and then in evaluation, the gradients by autograd of the
formula. Here is no kernel, no fused op and no import of normbench, only sums, products and roots. A
method without an entry fails the contract: add its equation in a file of this folder
(docs/methods.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class At:
    """Where a formula is evaluated.

    Attributes:
        state: the layer's parameters and buffers before the step, by name.
        params: the method's parameters, defaults filled in.
        act: the activation that the layer owns.
        training: a training forward, otherwise evaluation.
        memory: empty before the first step, and the same object in all steps of one layer: for
            what a method remembers outside of its buffers.
    """

    state: Mapping[str, Tensor]
    params: Mapping[str, Any]
    act: nn.Module | None
    training: bool
    memory: dict[str, Any]

    @property
    def eps(self) -> float:
        """As given, else the 1e-5 that slots have."""
        eps = self.params["eps"]
        return 1e-5 if eps is None else float(eps)

    def affine(self, y: Tensor) -> Tensor:
        """Gamma·y + beta."""
        return on_channels(self.state["weight"], y) * y + on_channels(self.state["bias"], y)

    def activate(self, y: Tensor) -> Tensor:
        """The activation, if there is one."""
        return y if self.act is None else self.act(y)

    def moved(self, name: str, now: Tensor, momentum: float | None = None) -> dict[str, Tensor]:
        """A running average after this step: `momentum` is the weight of the new value."""
        share = float(self.params["momentum"]) if momentum is None else momentum
        return {name: (1 - share) * self.state[name] + share * now.detach().flatten()}


Result = Tensor | tuple[Tensor, dict[str, Tensor]]
"""y; or y and the buffers that the step changes, with their new values."""

Formula = Callable[[Tensor, At], Result]


@dataclass(frozen=True)
class Oracle:
    """A method's formula and how it is checked.

    Attributes:
        formula: the training and evaluation forward.
        settings: parameters to check beside the defaults, where the formula says something else.
        exact_gradient: whether the method's backward is the derivative of its forward. Where the
            paper approximates it, the formula says how (with `detach`), and gradcheck is left out.
        exempt: names of contract tests that the method's definition contradicts, with the reason.
    """

    formula: Formula
    settings: tuple[dict[str, Any], ...] = ()
    exact_gradient: bool = True
    exempt: Mapping[str, str] = field(default_factory=dict)


ORACLES: dict[str, Oracle] = {}
"""The activation side, by method."""

WEIGHT_FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {}
"""The weight side: the weight that a convolution uses, from the one that is learned."""


def oracle(
    name: str,
    *settings: dict[str, Any],
    exact_gradient: bool = True,
    exempt: Mapping[str, str] | None = None,
) -> Callable[[Formula], Formula]:
    """Decorate the formula of a method."""

    def enter(formula: Formula) -> Formula:
        assert name not in ORACLES, f"{name} has two oracles"
        ORACLES[name] = Oracle(formula, settings, exact_gradient, exempt or {})
        return formula

    return enter


def weight_oracle(name: str) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
    """Decorate the formula of a method's weight side."""

    def enter(formula: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        WEIGHT_FORMULAS[name] = formula
        return formula

    return enter


def on_channels(values: Tensor, like: Tensor) -> Tensor:
    """C values shaped to broadcast over N,C,*."""
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


def moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over these dims, which stay as ones."""
    mean = x.mean(dims, keepdim=True)
    return mean, (x - mean).square().mean(dims, keepdim=True)


def over_batch(x: Tensor) -> tuple[int, ...]:
    """The dims that a batch statistic pools: all but the channels."""
    return (0, *range(2, x.dim()))


def over_space(x: Tensor) -> tuple[int, ...]:
    """The dims that an instance statistic pools."""
    return tuple(range(2, x.dim()))


def pooled(x: Tensor) -> int:
    """Values per channel in the batch."""
    return x.numel() // x.shape[1]


def by_groups(x: Tensor, groups: int, eps: float) -> Tensor:
    """Group norm without affine."""
    parts = x.reshape(x.shape[0], groups, -1)
    mean, var = moments(parts, (2,))
    return ((parts - mean) / (var + eps).sqrt()).reshape(x.shape)


def divisor(channels: int, most: int) -> int:
    """The largest divisor of C that is not above `most`."""
    return max(g for g in range(1, min(most, channels) + 1) if channels % g == 0)


def by_running(x: Tensor, at: At) -> Tensor:
    """Evaluation of batch norm: by running_mean and running_var, not affine."""
    mean, var = (on_channels(at.state[f"running_{name}"], x) for name in ("mean", "var"))
    return (x - mean) / (var + at.eps).sqrt()


def averages(x: Tensor, at: At) -> dict[str, Tensor]:
    """running_mean and running_var (unbiased) of batch norm after this batch."""
    mean, var = moments(x, over_batch(x))
    unbiased = var * pooled(x) / (pooled(x) - 1)
    return at.moved("running_mean", mean) | at.moved("running_var", unbiased)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ORACLES", "WEIGHT_FORMULAS", "At", "Oracle", "Result", "averages", "by_groups", "by_running",
    "divisor", "moments", "on_channels", "oracle", "over_batch", "over_space", "pooled", "torch",
    "weight_oracle",
]  # fmt: skip
