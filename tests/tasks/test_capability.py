"""Probes and task `capability`: entries for everything, whatever a layer does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_layers import PROBES, SMALL, Answers, NotFinite, OwnedReLU, Refuses

from normbench import registry
from normbench.capabilities import ALONE, Answer, Subject, batches, invariances
from normbench.capabilities.probe import ask, probe
from normbench.tasks import capability

CPU = torch.device("cpu")


def test_owners_of_their_activation_are_also_probed_without(answers: Answers) -> None:
    owner = answers(batches.channel_mean, OwnedReLU, consumes_activation=True)
    plain = answers(batches.channel_mean, "none")
    assert owner["channel_mean" + ALONE] == plain["channel_mean"]
    assert owner["channel_mean"] != owner["channel_mean" + ALONE]
    assert len(plain) == 1


def test_a_crash_is_an_entry(answer: Callable[..., Answer]) -> None:
    found = answer(invariances.input_scale_invariant, Refuses)
    assert found.value is None
    assert found.reason.startswith("crashed: ZeroDivisionError: not today (made_up_layers.py:")


def test_a_number_that_is_none_is_said_to_be_undefined(answer: Callable[..., Answer]) -> None:
    found = answer(batches.channel_mean, NotFinite)
    assert found == Answer(None, "undefined: the result is nan") or found == Answer(
        None, "undefined: the result is inf"
    )


def test_probes_have_names_and_words_of_their_own() -> None:
    assert len({p.name for p in PROBES}) == len({p.heading for p in PROBES}) == len(PROBES)
    assert all(p.description.endswith(".") and "\n" not in p.description for p in PROBES)


def test_the_page_explains_every_probe(root: Path) -> None:
    page = (root / "docs/capabilities.md").read_text(encoding="utf-8")
    assert [p.name for p in PROBES if f"| `{p.name}` |" not in page] == []


def test_a_probe_does_not_disturb_or_depend_on_random_numbers() -> None:
    subject = Subject("batch_norm", settings=SMALL)
    torch.manual_seed(1)
    first = ask(batches.train_eval_gap, subject)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert ask(batches.train_eval_gap, subject) == first


def small(method: str) -> Any:
    cell = capability.cell(method, fast=True)
    return replace(cell, config={**cell.config, **SMALL, "fast": True})


def test_the_record_has_every_probe_with_value_and_reason() -> None:
    fractions: list[float] = []
    outcome = capability.run(small("batch_norm"), CPU, fractions.append)
    entries = outcome.slots["probes"]
    assert {p.name for p in PROBES} <= set(entries)
    assert all(set(entry) == {"value", "reason"} for entry in entries.values())
    assert [n for n, e in entries.items() if e["reason"].startswith("crashed")] == []
    assert outcome.metrics["batch_independent"] == 0.0
    assert outcome.metrics["deterministic"] == 1.0
    assert "compiles" not in outcome.metrics
    assert all(map(math.isfinite, outcome.metrics.values()))
    assert fractions == sorted(fractions)


def test_a_layer_that_always_raises_still_fills_the_table(add: Callable[..., str]) -> None:
    outcome = capability.run(small(add(Refuses)), CPU, lambda fraction: None)
    entries = outcome.slots["probes"]
    assert {p.name for p in PROBES} <= set(entries)
    assert entries["batch_of_one"]["value"] is False
    assert entries["input_scale_invariant"]["reason"].startswith("crashed: ZeroDivisionError")


def test_a_layer_that_cannot_be_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @probe("fails")
    def fails(subject: Subject) -> Answer:
        """Cannot be answered."""
        raise OSError("gone")

    monkeypatch.setattr("normbench.capabilities.THEMES", {"Only": (fails,)})
    outcome = capability.run(small("none"), CPU, lambda fraction: None)
    assert outcome.status == "error"
    assert outcome.reason.startswith("no probe could be answered: crashed: OSError: gone")


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.list_methods())
def test_every_method_fills_the_table_without_a_crash(name: str) -> None:
    outcome = capability.run(small(name), CPU, lambda fraction: None)
    crashed = {n: e["reason"] for n, e in outcome.slots["probes"].items()
               if e["reason"].startswith("crashed")}  # fmt: skip
    assert crashed == {}


def test_the_cell_is_the_same_work_for_the_same_parameters() -> None:
    given = capability.cell("group_norm", {"groups": 4})
    assert given.variant == "group_norm(groups=4)"
    assert given.params == registry.resolve_params("group_norm", {"groups": 4})
    assert (given.task, given.model, given.dataset, given.batch_size) == (
        "capability", "layer", "none", 8,
    )  # fmt: skip
