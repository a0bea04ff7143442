"""docs/suites.md says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from normbench.suites import SuiteError, expand, load_suite
from normbench.suites.cost_schema import CostSuite
from normbench.suites.schema import AccuracySuite, Training

PAGE = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.S)
    assert found
    return found[1]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("my-first.yaml")


def test_the_example_has_the_cells_it_claims(in_folder: Path) -> None:
    in_folder.write_text(block("yaml"))
    assert f"{in_folder}: ok, {len(expand(load_suite(in_folder)))} cells" in block("console")


def test_the_mistakes_read_as_shown(in_folder: Path) -> None:
    wrong = block("yaml").replace("- group_norm", "- grop_norm").replace("[2, 32]", "[0, 32]")
    in_folder.write_text(wrong)
    with pytest.raises(SuiteError) as caught:
        load_suite(in_folder)
    assert [p.at(str(in_folder)) for p in caught.value.problems] == block("text").splitlines()


def test_every_key_is_described() -> None:
    keys = [*AccuracySuite.model_fields, *CostSuite.model_fields, *Training.model_fields]
    assert [key for key in keys if f"`{key}`" not in PAGE] == []
