"""`normbench coverage`: the command, its three ways of writing, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from normbench.cli import app, coverage_text, users_mistake
from normbench.engine.isolation import Limits
from normbench.surgery.coverage import Coverage, Swapped

runner = CliRunner(env={"COLUMNS": "100"})

FULL = Swapped(
    replaced=3, paired=2, consumed=1, input_shape=(2, 3, 64, 64),
    unconsumed=(("bn1", "activation act serves other places too"),),
)  # fmt: skip
KINDS = {"BatchNorm2d": 3}
PART = Swapped(replaced=3, left=(("n", "LayerNorm: why"),))
ROWS = [
    Coverage("bare"),
    Coverage("big", "big_s", 2_000_000_000, 9, problem="takes more than 3 GB of memory"),
    Coverage("odd", "odd_a|b", 5_000, 4, {}, {"group_norm": PART, "proxy_norm": PART}),
    Coverage("whole", "whole_s", 1_234_567, 3, KINDS, {"group_norm": FULL, "proxy_norm": FULL}),
]  # fmt: skip


def test_one_family_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "made" / "coverage.json"
    words = ["coverage", "--models", "test_resnet", "--train", "--seconds", "300"]
    result = runner.invoke(
        app, [*words, "--format", "json", "--out", str(out)], catch_exceptions=False
    )
    assert (result.exit_code, result.stdout) == (0, "")
    assert "[1/1] resnet: test_resnet full" in result.stderr
    content = json.loads(out.read_text(encoding="utf-8"))
    assert set(content["versions"]) == {"normbench", "timm", "torch"}
    [row] = content["families"]
    assert (row["family"], row["model"], row["status"]) == ("resnet", "test_resnet", "full")
    assert row["found"] == row["swaps"]["proxy_norm"]["replaced"] == 15
    assert row["swaps"]["proxy_norm"]["consumed"] == 8
    assert len(row["swaps"]["group_norm"]["losses"]) == 2


def test_what_takes_too_long_is_a_row_and_no_error() -> None:
    words = ["coverage", "--models", "samvit_huge_patch16", "--seconds", "1"]
    result = runner.invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert "takes more than 1 s" in result.stdout
    assert "0 replaced in full, 0 in part, 1 failed" in result.stdout


def test_a_pattern_that_matches_nothing_is_the_users_mistake() -> None:
    result = runner.invoke(app, ["coverage", "--models", "resnte18"])
    assert result.exception is not None
    sentence = users_mistake(result.exception)  # what `main` prints before it exits with 2
    assert sentence == "no model or family of timm matches 'resnte18'; did you mean 'resnet18'?"


def test_a_file_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    result = runner.invoke(app, ["coverage", "--models", "test_vit", "--out", str(tmp_path)])
    assert isinstance(result.exception, IsADirectoryError)
    assert "families" not in result.stderr


def page(pattern: str = "*", limits: Limits | None = None, train: bool = False) -> str:
    return coverage_text.written(ROWS, "markdown", pattern, limits or Limits(), train)


def test_the_page_begins_with_what_made_it() -> None:
    first = page().splitlines()[0]
    assert first.startswith("Made by `normbench coverage --format markdown` with normbench ")
    longer = page("res*", Limits(seconds=90, gigabytes=8), train=True).splitlines()[0]
    assert (
        "`normbench coverage --models 'res*' --format markdown --train --seconds 90 --memory 8`"
        in longer
    )


def test_the_page_counts_and_explains_the_exceptions() -> None:
    text = page()
    assert "4 families, 3 with a norm: 1 replaced in full, 1 in part, 1 failed." in text
    assert "Without any norm in any member: bare." in text
    assert "- big (big_s): takes more than 3 GB of memory\n" in text
    assert "- odd (odd_a|b): 1 slot left: LayerNorm: why\n" in text
    assert "- whole (whole_s), 1 slot bn1: activation act serves other places too\n" in text


def test_the_page_holds_one_row_a_family() -> None:
    rendered = MarkdownIt().enable("table").render(page())
    assert rendered.count("<tr>") == len(ROWS) + 1 + 7 + 1  # the legend is a table too
    assert "<td>odd_a|b</td>" in rendered
    assert "<td>1.2</td>" in rendered.replace(' style="text-align:right"', "")
    assert "2×3×64×64" in rendered


def test_the_table_of_the_terminal_has_the_same_rows() -> None:
    lines = coverage_text.written(ROWS, "table", "*", Limits(), False).splitlines()
    assert lines[0].split() == list(coverage_text.HEADER)
    assert [line.split()[0] for line in lines[2:6]] == ["bare", "big", "odd", "whole"]
    assert "2/1  2×3×64×64  forward, backward" in lines[5]


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_json_holds_everything(number: int) -> None:
    content = json.loads(coverage_text.written(ROWS, "json", "*", Limits(), False))
    row = content["families"][number]
    assert row["status"] == ROWS[number].status
    assert row["reason"] == ROWS[number].reason


def test_the_committed_page_is_of_the_timm_that_is_installed(root: Path) -> None:
    text = (root / "docs" / "coverage.md").read_text(encoding="utf-8")
    if f"timm {timm.__version__}" not in text.splitlines()[0]:
        pytest.skip("docs/coverage.md was made with another timm: normbench coverage makes it anew")
    rows = text[text.index("| family |") :].split("\n\n")[0].splitlines()[2:]
    own = [name for name in sorted(timm.list_modules()) if hasattr(timm.models, name)]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == own
