"""Every registered method, on every device at hand: a new method is covered without a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracles.formulas import ORACLES
from torch import Tensor, nn

from normbench import registry
from normbench.registry import MethodInfo, TrainingPlan

C = 16
NO_STATISTICS = "values per channel"
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@dataclass(frozen=True)
class Case:
    """A method, with an activation to own if it owns one."""

    name: str
    act: type[nn.Module] | None = None

    @property
    def info(self) -> MethodInfo:
        return registry.get(self.name)

    def build(self, features: int = C, device: str = "cpu", **params: Any) -> nn.Module:
        """The layer, told that training is 100 steps long."""
        act = self.act() if self.act else None
        layer = registry.build(self.name, features, act=act, **params)
        if self.info.prepare is not None:
            self.info.prepare(layer, TrainingPlan(total_steps=100))
        return layer.to(device)

    def __str__(self) -> str:
        return self.name + (f"+{self.act.__name__}" if self.act else "")


def cases() -> list[Case]:
    names = registry.list_methods()
    coupled = [name for name in names if registry.get(name).consumes_activation]
    return [Case(n) for n in names] + [Case(n, nn.SiLU) for n in coupled]


@pytest.fixture(params=cases(), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """A method; skipped where its definition contradicts the test, with the oracle's reason."""
    found: Case = request.param
    test = getattr(request.node, "originalname", "")
    oracle = ORACLES.get(found.name)
    if oracle is not None and test in oracle.exempt:
        pytest.skip(f"{found.name}: {oracle.exempt[test]}")
    return found


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def attempt() -> Callable[[nn.Module, Tensor], Tensor | None]:
    """The layer's output, or None where it says that the statistics do not exist."""

    def run(layer: nn.Module, x: Tensor) -> Tensor | None:
        refused: ValueError
        try:
            return layer(x)  # type: ignore[no-any-return]
        except ValueError as error:
            refused = error
        assert NO_STATISTICS in str(refused)
        return None

    return run
