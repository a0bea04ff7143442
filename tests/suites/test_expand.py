"""From a suite to its cells."""

from __future__ import annotations

import json
from typing import Any

import pytest

from normbench.cells import Cell, canonical_json
from normbench.suites import SuiteError, expand
from normbench.suites.schema import AccuracySuite

CONFIG_KEYS = {
    "samples", "epochs", "min_steps", "accumulate", "optimizer", "lr", "lr_reference_batch",
    "lr_scaling", "momentum", "nesterov", "weight_decay", "schedule", "warmup_fraction",
    "label_smoothing", "clip_grad_norm", "evaluations", "eval_batch_size", "timeout_seconds",
    "tune",
}  # fmt: skip


def cells(data: dict[str, Any], **changes: Any) -> list[Cell]:
    return expand(AccuracySuite.model_validate({**data, **changes}))


def test_the_grid_is_complete(good: dict[str, Any]) -> None:
    points = {(c.seed, c.batch_size, c.variant) for c in cells(good)}
    variants = ("batch_norm", "group_norm(groups=8)")
    assert points == {(s, b, v) for s in (0, 1) for b in (2, 8) for v in variants}


def test_methods_of_one_setting_are_adjacent_and_seeds_outermost(good: dict[str, Any]) -> None:
    order = [(c.seed, c.batch_size, c.method) for c in cells(good)]
    assert order == [
        (seed, batch, method)
        for seed in (0, 1)
        for batch in (2, 8)
        for method in ("batch_norm", "group_norm")
    ]


def test_every_config_key_is_present(good: dict[str, Any]) -> None:
    assert cells(good)[0].config.keys() == CONFIG_KEYS


def test_recalibration_is_in_the_config_only_where_it_is_asked_for(good: dict[str, Any]) -> None:
    asked = cells(good, training={"samples": 5, "recalibrate": 200})[0].config
    assert asked.keys() == CONFIG_KEYS | {"recalibrate"}


def test_defaults_keep_300_steps(good: dict[str, Any]) -> None:
    assert cells(good)[0].config["min_steps"] == 300


def test_a_float_key_written_as_an_integer_is_a_float(good: dict[str, Any]) -> None:
    lr = cells(good, training={"samples": 5, "lr": 1})[0].config["lr"]
    assert isinstance(lr, float)


def test_a_tuning_grid_holds_only_what_was_given(good: dict[str, Any]) -> None:
    tune = {"grid": {"lr": [0.1, 1]}, "samples": 50}
    expected = {"grid": {"lr": [0.1, 1.0]}, "samples": 50, "metric": "validation_accuracy"}
    assert cells(good, tune=tune)[0].config["tune"] == expected


def test_parameters_are_resolved(good: dict[str, Any]) -> None:
    params = cells(good, methods=["group_norm"])[0].params
    assert params["groups"] == 32


def test_string_and_mapping_name_the_same_cells(good: dict[str, Any]) -> None:
    mapping = [{"name": "group_norm", "params": {"groups": 8}}]
    assert cells(good, methods=mapping) == cells(good, methods=["group_norm(groups=8)"])


def test_a_model_may_have_its_own_batch_sizes(good: dict[str, Any]) -> None:
    models = ["nb_resnet10_1x1", {"name": "nb_resnet10_4x4", "batch_sizes": [4]}]
    found = {(c.model, c.batch_size) for c in cells(good, models=models)}
    assert found == {("nb_resnet10_1x1", 2), ("nb_resnet10_1x1", 8), ("nb_resnet10_4x4", 4)}


def test_model_arguments_reach_the_cell(good: dict[str, Any]) -> None:
    models = [{"name": "nb_resnet10_1x1", "args": {"drop_rate": 0.1}}]
    assert cells(good, models=models)[0].model_args == {"drop_rate": 0.1}


def test_dataset_options_hold_only_what_was_given(good: dict[str, Any]) -> None:
    datasets = [{"source": "embedded:mnist", "train_samples": 100}]
    assert cells(good, datasets=datasets)[0].dataset_args == {"train_samples": 100}


def test_exclusions_need_every_key_to_match(good: dict[str, Any]) -> None:
    kept = cells(good, exclude=[{"batch_size": [2, 4], "method": "batch_norm", "seed": 1}])
    assert len(kept) == 7


@pytest.mark.parametrize(("method", "left"), [("group_norm", 4), ("group_norm(groups=8)", 4)])
def test_an_exclusion_names_a_method_or_a_variant(
    good: dict[str, Any], method: str, left: int
) -> None:
    assert len(cells(good, exclude=[{"method": method}])) == left


def test_an_exclusion_of_one_variant_keeps_the_others(good: dict[str, Any]) -> None:
    methods = ["group_norm", "group_norm(groups=8)"]
    kept = cells(good, methods=methods, exclude=[{"method": "group_norm(groups=8)"}])
    assert {c.variant for c in kept} == {"group_norm"}


def test_zero_cells_are_refused(good: dict[str, Any]) -> None:
    with pytest.raises(SuiteError, match="tiny: expands to zero cells"):
        cells(good, exclude=[{"seed": [0, 1]}])


def test_the_same_cell_twice_is_refused(good: dict[str, Any]) -> None:
    with pytest.raises(SuiteError, match="twice"):
        cells(good, methods=["group_norm", "group_norm(groups=32)"])


def test_a_cell_survives_its_json_line(good: dict[str, Any]) -> None:
    cell = cells(good)[0]
    again = Cell.from_json(json.loads(canonical_json(cell.to_json())))
    assert canonical_json(again.to_json()) == canonical_json(cell.to_json())
