"""`normbench capabilities`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from normbench.capabilities import THEMES
from normbench.cli import app
from normbench.cli.capability_matrix import shown
from normbench.registry import RegistryError

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command on two methods, whose records the first call makes and the others find."""
    folder = tmp_path_factory.mktemp("capabilities")
    runner = CliRunner(env={"COLUMNS": "120"})

    def call(*arguments: str) -> Result:
        asked = ["none", "group_norm(groups=4)", "--fast", "--workers", "0", "--out", str(folder)]
        return runner.invoke(app, ["capabilities", *asked, *arguments], catch_exceptions=False)

    assert "2 cells, 2 to run" in call().stderr
    return call


def test_what_has_a_record_is_not_measured_again(command: Command) -> None:
    result = command()
    assert result.exit_code == 0
    assert "2 cells, 2 already measured, 0 to run" in result.stderr


def test_the_table_has_every_method_under_every_theme_and_the_reasons(command: Command) -> None:
    tables, _, reasons = command().stdout.partition("\nReasons\n")
    assert [line for line in tables.splitlines() if line in THEMES] == list(THEMES)
    rows = [line.split() for line in tables.splitlines()]
    assert [r[1:6] for r in rows if r and r[0] == "none"][1] == ["no"] * 5  # invariances
    assert sum(r[:1] == ["group_norm(groups=4)"] for r in rows) >= len(THEMES)
    assert "  input scale, none: changes by 9" in reasons.splitlines()
    assert "  DDP, all: skipped: takes seconds, left out by --fast" in reasons.splitlines()


def test_lines_fit_the_terminal(command: Command) -> None:
    tables, _, _ = command().stdout.partition("\nReasons\n")
    assert max(map(len, tables.splitlines())) <= 120


def test_markdown_has_rows_of_equal_length(command: Command) -> None:
    text = command("--format", "markdown").stdout
    for theme, probes in THEMES.items():
        table = text.partition(f"## {theme}\n\n")[2].partition("\n\n")[0].splitlines()
        assert {line.replace(r"\|", "").count("|") for line in table} == {len(probes) + 2}


def test_json_explains_the_probes_and_keeps_the_reasons(command: Command) -> None:
    content = json.loads(command("--format", "json").stdout)
    names = [probe.name for theme in THEMES.values() for probe in theme]
    assert [probe["name"] for probe in content["probes"]] == names
    entries = {m["variant"]: m["entries"] for m in content["methods"]}
    assert entries["none"]["input_scale_invariant"] == {"value": False, "reason": "changes by 9"}
    assert entries["group_norm(groups=4)"]["batch_independent"]["value"] is True


def test_an_unknown_method_is_answered_with_the_nearest(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["capabilities", "gruop_norm", "--out", str(tmp_path)])
    assert isinstance(result.exception, RegistryError)
    assert "did you mean 'group_norm'?" in str(result.exception)


@pytest.mark.parametrize(
    ("value", "reason", "text"),
    [
        (True, "", "yes"), (False, "so", "no"), (0.0, "", "0"), (1.2345, "", "1.23"),
        (None, "crashed: ValueError: x (a.py:1 in f)", "crashed"),
    ],
)  # fmt: skip
def test_an_entry_in_a_table(value: bool | float | None, reason: str, text: str) -> None:
    assert shown({"value": value, "reason": reason}) == text
