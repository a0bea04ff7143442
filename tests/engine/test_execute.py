"""Whatever a cell does, there is a record that says so."""

from __future__ import annotations

import dataclasses
import json
import random
import sys

import numpy as np
import pytest
import torch
from fake_task import make_cell

from normbench import registry
from normbench.cells import Cell, Record, cell_id
from normbench.engine import environment
from normbench.engine.execute import execute, identify, short_paths

CPU = torch.device("cpu")


def run(cell: Cell) -> Record:
    return execute(cell, device=CPU, submitter="tests")


@pytest.mark.parametrize(
    ("act", "status", "reason"),
    [
        ("ok", "ok", ""),
        ("diverge", "diverged", "loss is NaN at step 3"),
        (
            "gpu oom",
            "oom",
            "batch 8 does not fit into memory: CUDA out of memory. Tried to allocate 2 GiB",
        ),
        ("refuse", "unsupported", "instance_norm got one value; needs more values per channel"),
        ("mistake", "error", "batch size 512 is larger than the 100 training images"),
        ("fault", "error", "KeyError: 'missing' (fake_task.py:"),
        ("not plain", "error", "TypeError: Object of type Tensor is not JSON serializable"),
    ],
)
def test_what_happened_becomes_status_and_reason(act: str, status: str, reason: str) -> None:
    record = run(make_cell(act=act))
    assert record.status == status
    assert record.reason.startswith(reason)


def test_memory_that_cannot_be_had_is_oom() -> None:
    assert run(make_cell(act="exhaust memory")).status == "oom"


def test_a_fault_keeps_its_traceback_without_home_folders() -> None:
    notes = "\n".join(run(make_cell(act="fault")).notes)
    assert "KeyError" in notes
    assert "engine/fake_task.py" in notes
    assert 'File "/' not in notes


def test_a_users_mistake_has_no_traceback() -> None:
    assert run(make_cell(act="mistake")).notes == ()


def test_warnings_become_notes_each_once() -> None:
    record = run(make_cell(act="warn"))
    assert record.notes == ("groups became 16", "UserWarning: this kernel is slow")


def test_an_unknown_method_is_an_error_with_the_nearest_name() -> None:
    record = run(dataclasses.replace(make_cell(), method="batch_nrom"))
    assert record.status == "error"
    assert "did you mean 'batch_norm'?" in record.reason


@pytest.mark.parametrize(
    ("act", "error"), [("interrupt", KeyboardInterrupt), ("sys.exit", SystemExit)]
)
def test_only_an_interrupt_or_exit_passes_through(act: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run(make_cell(act=act))


def test_a_cell_over_its_limit_stops_at_its_next_progress() -> None:
    record = run(make_cell(act="work steadily", seconds=20, timeout_seconds=0.2))
    assert (record.status, record.reason) == ("timeout", "took longer than its limit of 0.2 s")
    assert record.wall_seconds < 10


def test_a_record_names_the_work_the_machine_and_who() -> None:
    cell = make_cell()
    record = run(cell)
    work, code_hash, protocol = identify(cell)
    assert (record.cell_id, record.code_hash, record.protocol) == (work, code_hash, protocol)
    assert record.hardware_class == environment.hardware_class(CPU)
    assert record.environment == environment.describe(CPU, 1)
    assert record.submitter == "tests"


def test_a_cells_id_covers_the_methods_code_and_the_tasks_protocol() -> None:
    cell = make_cell()
    assert identify(cell) == (
        cell_id(cell, registry.get("none").code_hash(), 1),
        registry.get("none").code_hash(),
        1,
    )


def test_measuring_twice_on_one_machine_gives_one_record_id() -> None:
    assert run(make_cell()).record_id == run(make_cell()).record_id


def test_every_record_survives_json() -> None:
    for act in ("ok", "warn", "fault"):
        record = run(make_cell(act=act))
        assert Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


def test_random_numbers_depend_on_the_seed_alone() -> None:
    first = run(make_cell(1, "draws")).metrics
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert run(make_cell(1, "draws")).metrics == first
    assert run(make_cell(2, "draws")).metrics != first


def test_a_cell_has_the_threads_it_was_given() -> None:
    record = execute(make_cell(act="draws"), device=CPU, threads=2)
    assert record.metrics["threads"] == 2
    assert record.environment["threads"] == 2


def test_the_state_of_the_callers_process_is_restored() -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
            torch.get_rng_state().tolist(), random.getstate(), sys.float_info.min / 2,
            np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]  # noqa: NPY002
        )  # fmt: skip

    before = state()
    run(make_cell(act="draws"))
    run(make_cell(act="fault"))
    assert state() == before


def test_paths_are_shortened_on_every_system() -> None:
    assert short_paths('File "/home/ada/x/y/z.py", line 3') == 'File "x/y/z.py", line 3'
    assert short_paths('File "C:\\Users\\ada\\x\\z.py", line 3') == 'File "ada\\x\\z.py", line 3'
    assert short_paths('File "<string>", line 1') == 'File "<string>", line 1'
