"""Suites that measure costs: their grid, and each mistake in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from normbench.cells import Cell
from normbench.engine.planning import PlanError, check_machine, default_workers, plan
from normbench.leaderboard import costs
from normbench.suites import SuiteError, expand
from normbench.suites.cost_schema import CostSuite, Mode
from normbench.timing import models
from normbench.timing.machine import MachineError, available_cores

Find = Callable[[str], list[str]]

GOOD = """\
name: tiny-costs
question: What does it cost?
task: throughput
methods: [batch_norm, group_norm(groups=8)]
models: [resnet18, {name: nb_resnet10_1x1, image_size: 28, batch_sizes: [4]}]
batch_sizes: [2, 8]
image_size: 64
modes: [train, inference]
layouts: [nchw, nhwc]
"""

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def cells(text: str = GOOD, **changes: Any) -> list[Cell]:
    return expand(CostSuite.model_validate({**yaml.safe_load(text), **changes}))


def test_the_grid_is_complete_and_methods_are_adjacent() -> None:
    found = cells()
    assert len(found) == 2 * (2 * 2 * 2 + 2 * 2)  # methods × (modes × layouts × batches + …)
    assert {(c.model, c.config["image_size"]) for c in found} == {
        ("resnet18", 64), ("nb_resnet10_1x1", 28),
    }  # fmt: skip
    assert {c.batch_size for c in found if c.model == "nb_resnet10_1x1"} == {4}
    assert [c.method for c in found[:4]] == ["batch_norm", "group_norm"] * 2
    assert {(c.dataset, c.seed, c.precision) for c in found} == {("none", 0, "fp32")}


def test_configs_hold_what_the_task_reads_and_nothing_else() -> None:
    common = {"layout", "image_size", "threads", "timeout_seconds"}
    assert cells()[0].config.keys() == common | {"mode", "compile"}
    data = yaml.safe_load(GOOD)
    del data["modes"]
    suite = CostSuite.model_validate({**data, "task": "memory", "budgets_gib": [1, 2.5]})
    config = expand(suite)[0].config
    assert config.keys() == common | {"budgets_gib"}
    assert config["budgets_gib"] == [1, 2.5]


def test_precision_and_compile_are_axes_and_exclusions_match_them() -> None:
    found = cells(
        precisions=["fp32", "bf16"], compile=[False, True],
        exclude=[{"compile": True, "precision": "fp32"}, {"mode": "inference", "compile": True}],
    )  # fmt: skip
    points = {(c.precision, c.config["compile"], c.config["mode"]) for c in found}
    assert points == {
        ("fp32", False, "train"), ("fp32", False, "inference"), ("bf16", False, "train"),
        ("bf16", False, "inference"), ("bf16", True, "train"),
    }  # fmt: skip


MISTAKES = {
    "a training section": (
        "image_size: 64\n",
        "image_size: 64\ntraining: {samples: 5}\n",
        "8:1: training: unknown key",
    ),
    "budgets of the other task": (
        "modes: [train, inference]",
        "budgets_gib: [4]",
        "8:1: budgets_gib: budgets_gib says nothing to task throughput: remove it",
    ),
    "an unknown precision": (
        "modes: [train, inference]",
        "precisions: [fp8]",
        "8:14: precisions[0]: 'fp8' is unknown; valid: bf16, fp16, fp32, tf32",
    ),
    "an unknown mode": (
        "modes: [train, inference]",
        "modes: [trains]",
        "8:9: modes[0]: 'trains' is unknown; did you mean 'train'?",
    ),
    "an unknown task": (
        "task: throughput",
        "task: throughputs",
        "3:7: task: 'throughputs' is unknown; did you mean 'throughput'?",
    ),
    "no image size": ("image_size: 64\n", "", "1:1: the key 'image_size' is missing"),
    "the same model twice": (
        "{name: nb_resnet10_1x1, image_size: 28, batch_sizes: [4]}",
        "resnet18",
        "5:20: models[1]: the model resnet18 stands in line 5 already",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_sentence_where_it_stands(name: str, problems: Find) -> None:
    old, new, wanted = MISTAKES[name]
    assert old in GOOD
    found = problems(GOOD.replace(old, new))
    assert any(problem.startswith(wanted) for problem in found), found


def test_an_exclusion_that_matches_nothing_is_a_slip(problems: Find) -> None:
    found = problems(GOOD + "exclude: [{layout: nhwc, mode: forward}]\n")
    assert any("leaves nothing out" in problem for problem in found)


def test_cells_that_time_run_alone(tmp_path: Path) -> None:
    found = cells()
    assert default_workers(CPU, found) == 1
    assert default_workers(CPU) == available_cores()
    with pytest.raises(PlanError, match="cells of task throughput time, and must run alone"):
        check_machine(found, CPU, 2)
    check_machine(found, CPU, 1)


def test_cells_that_weigh_memory_run_alone_unless_asked_not_to(tmp_path: Path) -> None:
    data = yaml.safe_load(GOOD)
    del data["modes"]
    found = expand(CostSuite.model_validate({**data, "task": "memory"}))
    assert default_workers(CPU, found) == 1
    check_machine(found, CPU, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"precisions": ["tf32"]}, "a CPU has fp32"), ({"threads": 4096}, "this machine has")],
)
def test_what_the_machine_lacks_is_refused_before_anything_runs(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(MachineError, match=words):
        plan(cells(**changes), out=tmp_path, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_suite_for_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "tiny-costs.yaml"
    path.write_text(GOOD + "device: cuda\n", encoding="utf-8")
    with pytest.raises(PlanError, match="tiny-costs is for device cuda, but torch finds no CUDA"):
        plan(path, out=tmp_path, device="auto")


def test_a_suite_that_excludes_everything_is_refused() -> None:
    with pytest.raises(SuiteError, match="every one is excluded"):
        cells(exclude=[{"method": ["batch_norm", "group_norm"]}])


def test_the_modes_of_suites_task_and_boards_are_the_same() -> None:
    assert get_args(Mode) == tuple(models.MODES) == costs.MODES
