"""`normbench methods`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from normbench.cli import app
from normbench.cli.catalogue_page import markdown
from normbench.cli.plain_math import plain
from normbench.registry import RegistryError, get, list_methods

EXPORTED = Path(__file__).parents[2] / "leaderboard" / "catalogue.json"
runner = CliRunner(env={"COLUMNS": "80"})


def printed(*arguments: str) -> str:
    result = runner.invoke(app, ["methods", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def catalogue() -> dict[str, Any]:
    """The catalogue without methods of plugins that happen to be installed here."""
    content = json.loads(printed("--json"))
    own = [m for m in content["methods"] if get(m["name"]).module.startswith("normbench.")]
    return {**content, "methods": own}


def test_the_table_names_every_method() -> None:
    assert {line.split(" ")[0] for line in printed().splitlines()} >= set(list_methods())


@pytest.mark.parametrize("name", list_methods())
def test_details_show_equation_parameters_and_citation_in_80_columns(name: str) -> None:
    text, info = printed(name), get(name)
    joined = " ".join(text.split())
    assert " ".join(plain(info.equation).split()) in joined
    assert " ".join(info.policy.split()) in joined
    assert [p for p in info.params if f"\n  {p}: default " not in text] == []
    assert info.citation is None or info.citation.bibtex(name).splitlines()[0] in text
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    result = runner.invoke(app, ["methods", "bach_norm"])
    assert isinstance(result.exception, RegistryError)
    assert str(result.exception) == "unknown method 'bach_norm'; did you mean 'batch_norm'?"


def test_json_is_sorted_by_name() -> None:
    content = json.loads(printed("--json"))
    assert [entry["name"] for entry in content["methods"]] == list_methods()


def test_json_of_one_method_holds_that_method() -> None:
    [entry] = json.loads(printed("batch_norm", "--json"))["methods"]
    assert entry["name"] == "batch_norm"


def test_the_exported_catalogue_is_fresh() -> None:
    exported = json.loads(EXPORTED.read_text(encoding="utf-8"))
    assert exported == catalogue(), "run: normbench methods --json > leaderboard/catalogue.json"


def test_the_catalogues_page_is_fresh_and_has_every_policy() -> None:
    page = EXPORTED.parents[1] / "docs" / "catalogue.md"
    own = catalogue()["methods"]
    text = page.read_text(encoding="utf-8")
    assert text == "\n".join(markdown(own)) + "\n", (
        "run: normbench methods --markdown > docs/catalogue.md"
    )
    assert [m["name"] for m in own if m["policy"] not in text] == []
