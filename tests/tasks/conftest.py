from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_up_layers import SMALL, Answers, Layer

from normbench import registry
from normbench.capabilities import Answer, Probe, Subject
from normbench.capabilities.probe import ask


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Layer]], str]:
    """Enter a made-up layer in the catalogue for the length of a test; its name."""
    monkeypatch.setattr(registry, "_METHODS", {n: registry.get(n) for n in registry.list_methods()})

    def enter(layer: type[Layer], **options: Any) -> str:
        name = f"made_up_{layer.__name__.lower()}"
        registry.register(
            name, title=name, family="test", equation="y = x", policy="None.", **options
        )(layer)
        return name

    return enter


@pytest.fixture
def answers(add: Callable[..., str]) -> Answers:
    """A probe's entries for a method of the catalogue or a made-up layer."""

    def put(asked: Probe, method: str | type[Layer], **options: Any) -> dict[str, Answer]:
        name = method if isinstance(method, str) else add(method, **options)
        return ask(asked, Subject(name, registry.resolve_params(name), settings=SMALL))

    return put


@pytest.fixture
def answer(answers: Answers) -> Callable[..., Answer]:
    def put(asked: Probe, method: str | type[Layer]) -> Answer:
        return answers(asked, method)[asked.name]

    return put
