from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from normbench.suites import SuiteError, load_suite

GOOD = """\
name: tiny
question: Does it work?
task: accuracy
methods: [batch_norm, group_norm(groups=8)]
models: [nb_resnet10_1x1]
datasets: [embedded:mnist]
batch_sizes: [2, 8]
seeds: [0, 1]
training: {samples: 600}
"""


@pytest.fixture
def good_text() -> str:
    """A valid suite, to be broken by a test."""
    return GOOD


@pytest.fixture
def good() -> dict[str, Any]:
    """A valid suite as plain data."""
    return dict(yaml.safe_load(GOOD))


@pytest.fixture
def problems(tmp_path: Path) -> Callable[[str], list[str]]:
    """What is wrong with a suite's text, each as `line:column: message`."""

    def find(text: str) -> list[str]:
        path = tmp_path / "suite.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SuiteError) as caught:
            load_suite(path)
        return [f"{p.line}:{p.column}: {p.message}" for p in caught.value.problems]

    return find
