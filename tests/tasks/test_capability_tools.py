"""Probes that need a tool: torch.compile, ONNX, DDP; and what is said where it is not at hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
from made_up_layers import SMALL, Branches, Layer, Unused

from normbench.capabilities import Answer, Subject, parallel, tools
from normbench.capabilities.probe import ask


def test_a_missing_package_is_an_entry(
    answer: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        tools.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else find(n)
    )
    found = answer(tools.onnx_agrees, "batch_norm")
    assert found.value is None
    assert found.reason.startswith("missing: package")
    assert "onnxruntime" in found.reason


def test_onnxruntime_agrees(answer: Callable[..., Answer]) -> None:
    for name in tools.ONNX_PACKAGES:
        pytest.importorskip(name)
    assert answer(tools.onnx_agrees, "group_norm").value is True
    assert answer(tools.onnx_agrees, Branches).value is False


def test_fast_leaves_slow_probes_out_and_says_so() -> None:
    subject = Subject("none", settings={**SMALL, "fast": True})
    assert ask(tools.compiles, subject)["compiles"] == Answer(
        None, "skipped: takes seconds, left out by --fast"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "value"), [("batch_norm", True), (Branches, False)])
def test_compiled(answer: Callable[..., Answer], method: str | type[Layer], value: bool) -> None:
    assert answer(tools.compiles, method).value is value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "value"), [("batch_norm", True), ("weight_standardization", True), (Unused, False)]
)
def test_ddp(answer: Callable[..., Answer], method: str | type[Layer], value: bool) -> None:
    found = answer(parallel.ddp_averages, method)
    assert found.value is value, found
    assert value or "RuntimeError: Expected to have finished reduction" in found.reason
