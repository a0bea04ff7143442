"""Ids of cells: what counts as the same work."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from example_records import make_record

from normbench.cells import Cell, CellError, Record, cell_id

CELL = make_record(0.9).cell


def an_id(cell: Cell = CELL, code: str = "c0de", protocol: int = 1) -> str:
    return cell_id(cell, code, protocol)


def with_config(**changes: Any) -> Cell:
    return dataclasses.replace(CELL, config={**CELL.config, **changes})


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(CELL, suite="another"),
        dataclasses.replace(CELL, variant="another label"),
        with_config(timeout_seconds=1),
        with_config(eval_batch_size=7),
        Cell.from_json(CELL.to_json()),
    ],
)
def test_labels_and_limits_are_not_work(other: Cell) -> None:
    assert an_id(other) == an_id()


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(CELL, seed=CELL.seed + 1),
        dataclasses.replace(CELL, batch_size=CELL.batch_size + 1),
        dataclasses.replace(CELL, params={**CELL.params, "eps": 0.5}),
        dataclasses.replace(CELL, dataset_args={"train_samples": 5}),
        with_config(lr=123.0),
    ],
)
def test_what_changes_the_measurement_changes_the_id(other: Cell) -> None:
    assert an_id(other) != an_id()


def test_code_and_protocol_are_part_of_the_work() -> None:
    assert len({an_id(), an_id(code="0ther"), an_id(protocol=2)}) == 3


def test_whole_floats_and_integers_are_the_same_configuration() -> None:
    assert an_id(with_config(lr=1)) == an_id(with_config(lr=1.0))


def test_a_record_of_another_schema_version_is_refused() -> None:
    data = make_record(0.9).to_json() | {"schema_version": 99}
    with pytest.raises(CellError, match="schema version 99"):
        Record.from_json(data)


def test_unknown_and_missing_keys_are_named() -> None:
    data = CELL.to_json()
    data["sede"] = data.pop("seed")
    with pytest.raises(CellError, match="misses seed and has unknown sede"):
        Cell.from_json(data)
