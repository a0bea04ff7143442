"""The suites that users run, and the schema that editors read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from normbench.data.options import Options
from normbench.suites import expand, json_schema, load_suite
from normbench.suites.schema import DatasetEntry

FOLDER = Path(__file__).parents[2] / "suites"
SUITES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_suites() -> None:
    assert SUITES


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_suite(path).name == path.stem


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_opens_with_its_question_and_its_cost(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("\nname:")[0]
    assert "?" in head
    assert f"Costs {len(expand(load_suite(path)))} cells" in head


def test_small_batch_asks_what_the_readme_promises() -> None:
    cells = expand(load_suite(FOLDER / "small-batch.yaml"))
    eps = {c.params["eps"] for c in cells if c.method == "batch_norm"}
    assert eps == {1e-5, 1e-3}
    assert {c.batch_size for c in cells if c.model == "nb_resnet10_4x4"} == {2, 8, 32}
    assert min(c.config["min_steps"] for c in cells) >= 300


def test_the_exported_schema_is_fresh() -> None:
    exported = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    assert exported == json_schema(), "run: normbench suite schema --out suites/schema.json"


def test_a_suite_takes_every_option_of_a_dataset() -> None:
    known = {field.name for field in dataclasses.fields(Options)}
    assert DatasetEntry.model_fields.keys() - {"source"} == known
