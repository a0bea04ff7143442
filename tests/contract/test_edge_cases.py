"""Where statistics hardly exist a method works, refuses, or says in its policy what is left."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from normbench import registry
from normbench.capabilities.edge_cases import EDGE_CASES, EdgeCase, behaviour


@pytest.mark.parametrize("edge", EDGE_CASES, ids=lambda edge: edge.heading)
def test_the_outcome_is_defined_and_stands_in_the_policy(case, edge):
    found, policy = behaviour(case.name, edge), case.info.policy
    assert found in ("works", "refuses", "constant")
    if found == "refuses":
        # Some refer to batch_norm's policy or to the values that are needed.
        assert re.search(r"[Rr]efuse|[Tt]wo values|batch_norm", policy)
    if found == "constant":
        assert "y = beta" in policy


class Odd(nn.Module):
    """Divides by a deviation that does not exist for one value."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.std(0)


class Deaf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError


@pytest.mark.filterwarnings("ignore:std\\(\\)")  # what makes it odd
def test_each_outcome_is_told_apart(monkeypatch):
    of_one = EdgeCase("one", (1, 4))
    for layer, expected in ((Odd(), "not finite"), (Deaf(), "constant"), (nn.Tanh(), "works")):
        monkeypatch.setattr(registry, "build", lambda *_, made=layer, **__: made)
        assert behaviour("none", of_one) == expected
    monkeypatch.setattr(registry, "build", lambda *_, **__: Broken())
    with pytest.raises(ZeroDivisionError):
        behaviour("none", of_one)


def test_random_numbers_go_on_as_before():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    behaviour("mode_norm", EDGE_CASES[0])
    assert torch.equal(torch.rand(1), expected)
