"""What a run says of one cell: by what it is told apart, and its main figure."""

from __future__ import annotations

from example_records import make_record, make_timed

from normbench.cli import progress


def test_a_label_has_what_tells_the_cells_of_its_task_apart() -> None:
    assert progress.label(make_record().cell) == "batch_norm · nb_resnet10_1x1 · batch 2 · seed 0"
    assert progress.label(make_timed().cell) == (
        "batch_norm · resnet18 · throughput train nchw · batch 2 · seed 0"
    )
    layer = make_timed(task="layer", model="layer", config={"part": "both", "channels": 64})
    assert progress.label(layer.cell) == "batch_norm · layer · both 64 · batch 2 · seed 0"


def test_the_outcome_is_the_tasks_main_figure() -> None:
    assert progress.outcome(make_timed()) == "ok, ratio 1.23 [1.19, 1.31]"
    assert progress.outcome(make_record(0.948)) == "ok, test accuracy 94.8%"
    memory = make_record(task="memory", metrics={"saved_ratio": 0.7224})
    assert progress.outcome(memory) == "ok, saved ratio 0.722"


def test_without_a_main_figure_the_outcome_is_the_status() -> None:
    assert progress.outcome(make_record(task="step")) == "ok"
    failed = make_record(None, status="oom", reason="no room")
    assert progress.outcome(failed) == "oom: no room"
