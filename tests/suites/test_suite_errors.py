"""Each mistake in a suite: one sentence, at its line and column, with the nearest valid name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from normbench.suites import SuiteError, load_suite

Find = Callable[[str], list[str]]

# (line to replace, its replacement, the one problem it makes)
MISTAKES = {
    "unknown key": ("seeds:", "sedes:", "8:1: sedes: unknown key; did you mean 'seeds'?"),
    "missing key": ("task: accuracy\n", "", "1:1: the key 'task' is missing"),
    "unknown task": (
        "task: accuracy",
        "task: acuracy",
        "3:7: task: 'acuracy' is unknown; did you mean 'accuracy'?",
    ),
    "name with a space": (
        "name: tiny",
        "name: a b",
        "1:7: name: is 'a b'; expected lower-case letters, digits, '.', '_' and '-'",
    ),
    "text for a number": (
        "[2, 8]",
        "[2, many]",
        "7:18: batch_sizes[1]: expected an integer, got the text 'many'",
    ),
    "quoted number": (
        "[2, 8]",
        '[2, "8"]',
        "7:18: batch_sizes[1]: expected an integer, got the text '8'; remove the quotes",
    ),
    "float for an integer": (
        "[2, 8]",
        "[2, 8.0]",
        "7:18: batch_sizes[1]: expected an integer, got 8.0; write 8",
    ),
    "boolean for an integer": (
        "[2, 8]",
        "[2, true]",
        "7:18: batch_sizes[1]: expected an integer, got true",
    ),
    "value for a list": (
        "seeds: [0, 1]",
        "seeds: 3",
        "8:8: seeds: expected a list, got 3; write [3]",
    ),
    "nothing for a list": (
        "seeds: [0, 1]",
        "seeds:",
        "8:7: seeds: expected a list, got nothing",
    ),
    "batch size zero": ("[2, 8]", "[0, 8]", "7:15: batch_sizes[0]: is 0; expected at least 1"),
    "a trial that is no training section": (
        "training: {samples: 600}",
        "training: {samples: 600}\n"
        "tune: {samples: 90, grid: {nesterov: [true], momentum: [0.5, 0]}}",
        '10:21: tune.grid: in the trial {"momentum":0,"nesterov":true}, '
        "nesterov needs sgd with a momentum above 0",
    ),
    "repeated seed": ("[0, 1]", "[0, 0]", "8:8: seeds: 0 stands there twice"),
    "no methods": (
        "[batch_norm, group_norm(groups=8)]",
        "[]",
        "4:10: methods: is an empty list; expected at least one entry",
    ),
    "unknown method": (
        "[batch_norm,",
        "[bach_norm,",
        "4:11: methods[0]: unknown method 'bach_norm'; did you mean 'batch_norm'?",
    ),
    "not a method at all": (
        "group_norm(groups=8)]",
        "group_norm(groups=]",
        "4:23: methods[1]: 'group_norm(groups=' is not a method: "
        "expected name or name(key=value, ...)",
    ),
    "unknown parameter": (
        "group_norm(groups=8)",
        "{name: group_norm, params: {group: 8}}",
        "4:51: methods[1].params.group: method 'group_norm' has no parameter 'group'; "
        "did you mean 'groups'?",
    ),
    "parameter out of bounds": (
        "group_norm(groups=8)",
        "{name: group_norm, params: {groups: 0}}",
        "4:59: methods[1].params.groups: group_norm: groups is 0; expected ≥ 1",
    ),
    "parameter of the wrong type": (
        "group_norm(groups=8)",
        "{name: group_norm, params: {groups: all}}",
        "4:59: methods[1].params.groups: group_norm: groups is 'all'; expected int",
    ),
    "infinite parameter": (
        "batch_norm,",
        "batch_norm(momentum=1e999),",
        "4:11: methods[0]: momentum is not a finite number",
    ),
    "repeated variant": (
        "[batch_norm,",
        "[{name: group_norm, params: {groups: 8}},",
        "4:52: methods[1]: the variant group_norm(groups=8) stands in line 4 already",
    ),
    "unknown model": (
        "nb_resnet10_1x1",
        "nb_resnet10_1x2",
        "5:10: models[0]: unknown model 'nb_resnet10_1x2'; did you mean 'nb_resnet10_1x1'?",
    ),
    "argument that the task sets": (
        "[nb_resnet10_1x1]",
        "[{name: nb_resnet10_1x1, args: {pretrained: true}}]",
        "5:41: models[0].args.pretrained: is set by the task, the same for every cell; remove it",
    ),
    "option of another kind of source": (
        "[embedded:mnist]",
        "[{source: embedded:mnist, revision: main}]",
        "6:37: datasets[0].revision: embedded:mnist has no option 'revision'; ",
    ),
    "options that exclude each other": (
        "[embedded:mnist]",
        "[{source: embedded:mnist, augment: true, streaming: false}]",
        "6:12: datasets[0]: embedded:mnist: augment needs streaming, which is switched off",
    ),
    "parameters that exclude each other": (
        "batch_norm,",
        "'batch_renorm(schedule=fraction, hold=0.5)',",
        "4:11: methods[0]: batch_renorm: hold, rmax_full and dmax_full are ",
    ),
    "no budget": (
        "{samples: 600}",
        "{lr: 0.1}",
        "9:11: training: expected exactly one of 'samples' and 'epochs'",
    ),
    "two budgets": (
        "{samples: 600}",
        "{samples: 600, epochs: 2}",
        "9:11: training: expected exactly one of 'samples' and 'epochs'",
    ),
    "key at the wrong level": (
        "{samples: 600}",
        "{samples: 600, min_steps: 3}",
        "9:26: training.min_steps: belongs at the top level",
    ),
    "tuned budget": (
        "{samples: 600}",
        "{samples: 600}\ntune: {samples: 9, grid: {lr: [0.1], samples: [3]}}",
        "10:38: tune.grid.samples: is not tuned: every variant gets the same budget and the same "
        "evaluation",
    ),
    "empty grid": (
        "{samples: 600}",
        "{samples: 600}\ntune: {samples: 9, grid: {}}",
        "10:26: tune.grid: expected at least one training key with its values",
    ),
    "no cells": (
        "{samples: 600}",
        "{samples: 600}\nexclude: [{model: nb_resnet10_1x1}]",
        "10:10: exclude: expands to zero cells: every one is excluded",
    ),
    "exclusion of nothing": (
        "{samples: 600}",
        "{samples: 600}\nexclude: [{batch_size: 3}]",
        "10:11: exclude[0]: leaves nothing out: no cell matches it",
    ),
    "duplicate key": (
        "seeds: [0, 1]",
        "seeds: [0]\nseeds: [1]",
        "9:1: seeds: duplicate key; it stands in line 8 already",
    ),
    "word of YAML 1.1": (
        "Does it work?",
        "yes",
        "2:11: question: yes means different things to different YAML readers; "
        'write true, or quote it: "yes"',
    ),
    "underscored number": (
        "600",
        "6_000",
        "9:21: training.samples: 6_000 means different things to different YAML readers; "
        "write it without the underscore",
    ),
    "infinity": (
        "600",
        "600, lr: .inf",
        "9:30: training.lr: .inf is not a finite number",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_at_its_place(case: str, problems: Find, good_text: str) -> None:
    old, new, expected = MISTAKES[case]
    assert good_text.count(old) == 1
    [problem] = problems(good_text.replace(old, new))
    # Where the sentence comes from another room, its beginning is given.
    assert problem.startswith(expected) if expected[-1] in " ;" else problem == expected


def test_an_unknown_dataset_is_reported_at_its_place(problems: Find, good_text: str) -> None:
    [problem] = problems(good_text.replace("embedded:mnist", "embedded:mnits"))
    assert problem.startswith("6:12: datasets[0]: ")
    assert "embedded:mnist" in problem.replace("embedded:mnits", "")


def test_all_mistakes_come_at_once_in_the_order_of_the_file(problems: Find, good_text: str) -> None:
    text = (
        good_text.replace("batch_norm", "bach_norm").replace("seeds", "sedes").replace("8]", "-8]")
    )
    assert [problem.split(":")[0] for problem in problems(text)] == ["4", "7", "8"]


def test_bad_syntax_names_the_place(problems: Find, good_text: str) -> None:
    [problem] = problems(good_text.replace("[0, 1]", "[0, 1"))
    assert problem.startswith("9:9: not valid YAML: while parsing a flow sequence")
    assert problem.endswith("(it begins in line 8)")


def test_a_tab_is_named(problems: Find) -> None:
    assert problems("name: a\ntraining:\n\tlr: 1\n") == [
        "3:1: not valid YAML: a tab where only spaces are allowed"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\nb: *x\n", "2:4: a suite has no aliases (*x); write the value out"),
        ("a: !!python/name:os.system\n", "1:4: a suite has no tags (!!python/name:os.system)"),
        ("a: 1\n---\nb: 2\n", "2:1: not valid YAML: expected a single document"),
        ("- a\n- b\n", "1:1: expected a mapping with the keys"),
        ("a: \x07\n", "1:4: this character is not allowed in YAML"),
        ("[" * 500, "0:0: is nested too deeply"),
        ("", "0:0: the file is empty"),
        ("# only a comment\n", "0:0: the file is empty"),
    ],
)
def test_what_is_not_a_suite_is_refused(text: str, expected: str, problems: Find) -> None:
    [problem] = problems(text)
    assert problem.startswith(expected)


def message(path: Path) -> str:
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    return str(caught.value)


def test_a_missing_file_is_answered_with_the_nearest(tmp_path: Path, good_text: str) -> None:
    (tmp_path / "small-batch.yaml").write_text(good_text)
    asked = tmp_path / "small_batch.yaml"
    assert message(asked) == f"{asked}: no such file; did you mean '{tmp_path}/small-batch.yaml'?"


def test_a_suites_bare_name_is_answered_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("suites").mkdir()
    Path("suites/small-batch.yaml").write_text(good_text)
    expected = "small-batch: no such file; did you mean 'suites/small-batch.yaml'?"
    assert message(Path("small-batch")) == expected


def test_a_folder_is_answered_with_its_suites(tmp_path: Path, good_text: str) -> None:
    (tmp_path / "a.yaml").write_text(good_text)
    expected = f"{tmp_path}: is a folder; expected a YAML file: {tmp_path}/a.yaml"
    assert message(tmp_path) == expected


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert message(path) == f"{path}: is not UTF-8 text; expected a YAML file"


def test_the_message_has_a_line_for_each_problem(tmp_path: Path, good_text: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(good_text.replace("seeds", "sedes").replace("[2, 8]", "[2, 0]"))
    lines = message(path).splitlines()
    assert lines[0] == f"{path} has 2 problems"
    assert [line.split(": ")[0] for line in lines[1:]] == [f"{path}:7:18", f"{path}:8:1"]
