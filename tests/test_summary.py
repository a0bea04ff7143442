"""The table that ends a run: nothing naked, nothing mixed, nothing hidden."""

from __future__ import annotations

import math

from example_records import make_record, make_timed

from normbench import summary, tasks
from normbench.cells import MAIN_METRICS


def row(text: str, label: str) -> str:
    """The line of the table that begins with `label`."""
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return line


def test_a_cell_has_mean_interval_and_n() -> None:
    values = [0.945, 0.948, 0.951]
    text = summary.table([make_record(v, seed=seed) for seed, v in enumerate(values)])
    half = 4.302653 * 0.3 / math.sqrt(3)  # t(0.975, 2)·s/√n
    assert "nb_resnet10_1x1 on embedded:mnist" in text
    assert row(text, "batch_norm").split(maxsplit=1)[1] == f"94.8 ±{half:.1f} (n=3)"


def test_one_seed_is_shown_as_such() -> None:
    assert row(summary.table([make_record(0.948)]), "batch_norm").endswith("94.8 (n=1)")


def test_failures_are_counted_beside_the_mean() -> None:
    records = [make_record(0.9, seed=0), make_record(0.9, seed=1)]
    records.append(make_record(None, seed=2, status="diverged", reason="NaN"))
    text = summary.table(records)
    assert "90.0 ±0.0 (n=2)" in text
    assert "diverged 1/3" in text


def test_a_metric_of_a_failed_run_does_not_enter_the_mean() -> None:
    records = [make_record(0.9, seed=0), make_record(0.1, seed=1, status="diverged")]
    assert "90.0 (n=1)" in summary.table(records)


def test_unsupported_stands_alone() -> None:
    records = [make_record(None, seed=s, batch_size=1, status="unsupported") for s in range(3)]
    assert row(summary.table(records), "batch_norm").split() == ["batch_norm", "unsupported"]


def test_columns_are_batch_sizes_in_order() -> None:
    records = [make_record(0.9, batch_size=size) for size in (128, 2, 32)]
    assert row(summary.table(records), "batch size").split() == ["batch", "size", "2", "32", "128"]


def test_a_missing_cell_is_empty() -> None:
    records = [make_record(0.9, batch_size=2), make_record(0.8, batch_size=8, method="none")]
    text = summary.table(records)
    assert row(text, "none").split() == ["none", "80.0", "(n=1)"]


def test_one_block_per_model_and_dataset() -> None:
    records = [make_record(model=m, dataset=d) for m in ("a", "b") for d in ("x", "y")]
    assert sum(" on " in line for line in summary.table(records).splitlines()) == 4


def test_what_cannot_be_compared_is_not_mixed() -> None:
    records = [
        make_record(0.9, seed=0),
        make_record(0.8, seed=1, hardware_class="h200"),
        make_record(0.7, seed=2, config={"samples": 6000, "lr": 0.2}),
    ]
    text = summary.table(records)
    assert "(n=1)" in text
    assert "(n=2)" not in text
    assert "hardware=h200, lr=0.1" in text
    assert "hardware=cpu-1-thread, lr=0.2" in text


def test_data_that_changed_between_seeds_are_not_averaged_over() -> None:
    records = [make_record(0.9, seed=0), make_record(0.5, seed=1, data_fingerprint="changed")]
    text = summary.table(records)
    assert "(n=2)" not in text
    assert "data fingerprint=da7a" in text
    assert "data fingerprint=changed" in text


def test_what_failed_before_reading_its_data_is_shown_with_the_rest() -> None:
    lost = make_record(None, seed=1, status="timeout", data_fingerprint="")
    text = summary.table([make_record(0.9, seed=0), lost])
    assert "timeout 1/2" in text
    assert "fingerprint" not in text


def test_the_latest_record_counts_and_the_others_are_mentioned() -> None:
    old = make_record(0.5, code_hash="before", started_at="2025-01-01T00:00:00+00:00")
    new = make_record(0.9)
    for order in ([old, new], [new, old]):
        text = summary.table(order)
        assert "90.0 (n=1)" in text
        assert "1 older record is superseded" in text


def test_a_failed_retry_does_not_hide_a_result() -> None:
    retry = make_record(None, status="error", code_hash="x", started_at="2027-01-01T00:00:00+00:00")
    assert "94.8 (n=1)" in summary.table([make_record(), retry])


def test_a_wide_table_moves_n_to_the_heading_then_continues_below() -> None:
    records = [
        make_record(0.9 + 0.01 * seed, seed=seed, batch_size=2**power)
        for seed in range(3)
        for power in range(1, 8)
    ]
    brief = summary.table(records, width=100)
    assert "n=3 seeds" in brief
    assert sum(line.startswith("batch size") for line in brief.splitlines()) == 1
    narrow = summary.table(records, width=60)
    assert sum(line.startswith("batch size") for line in narrow.splitlines()) == 2
    assert max(map(len, narrow.splitlines()[2:])) <= 60


def test_a_long_variant_is_wrapped() -> None:
    variant = "batch_renorm(dmax_full=0.25, hold=0.05, rmax_full=0.4, schedule=fraction)"
    text = summary.table([make_record(variant=variant)])
    assert "\n  hold=0.05, rmax_full=0.4,\n" in text


def test_other_metrics_keep_their_unit() -> None:
    assert row(summary.table([make_record()], metric="test_loss"), "batch_norm").endswith(
        "0.250 (n=1)"
    )


def test_a_run_without_the_metric_is_not_hidden() -> None:
    assert "no train_seconds 1/1" in summary.table([make_record()], metric="train_seconds")


def test_no_records_are_a_sentence() -> None:
    assert summary.table([]) == "No records to summarise."


def test_seeds_under_different_time_limits_are_one_mean() -> None:
    """What limits a cell without changing what it measures must not split its block."""
    config = make_record().cell.config
    records = [
        make_record(0.9, seed=seed, config={**config, "timeout_seconds": limit})
        for seed, limit in enumerate((60, 600))
    ]
    assert "(n=2)" in summary.table(records)


def test_an_eager_path_is_marked_and_said_once_for_each_method() -> None:
    records = [make_record(0.9, seed=s, batch_size=b, fallback="no CUDA device")
               for s in (0, 1) for b in (2, 8)]  # fmt: skip
    text = summary.table(records)
    assert row(text, "batch_norm (eager)").count("90.0") == 2
    assert row(text, "(eager): ") == (
        "(eager): batch_norm ran as its eager method: no CUDA device; such records never enter a "
        "board."
    )


def test_kernels_and_eager_path_are_not_averaged() -> None:
    text = summary.table([make_record(0.9, seed=0), make_record(0.5, seed=1, fallback="no Triton")])
    assert row(text, "batch_norm  ").endswith("90.0 (n=1)")
    assert row(text, "batch_norm (eager)").endswith("50.0 (n=1)")


def test_a_later_eager_run_does_not_supersede_one_of_the_kernels() -> None:
    kernels = make_record(0.9)
    eager = make_record(0.5, fallback="no Triton", started_at="2027-01-01T00:00:00+00:00")
    for records in ([kernels, eager], [eager, kernels]):
        assert summary.latest_records(records) == [kernels]


def test_a_ratio_of_one_seed_has_the_records_own_interval() -> None:
    text = summary.table([make_timed()])
    assert text.startswith("resnet18, throughput\nratio (time / batch_norm's): ")
    assert "of one seed [95% interval over rounds]" in text
    assert row(text, "batch_norm").endswith("  1.23 [1.19, 1.31] (n=1)")


def test_ratios_of_several_seeds_have_an_interval_over_seeds() -> None:
    text = summary.table([make_timed(ratio, seed=seed) for seed, ratio in enumerate((1.1, 1.3))])
    half = 12.7062 * 0.1  # t(0.975, 1)·s/√n
    assert row(text, "batch_norm").endswith(f"1.20 ±{half:.2f} (n=2)")
    assert "over rounds" not in text


def test_a_ratio_without_an_interval_stands_alone() -> None:
    text = summary.table([make_timed(half=None)])
    assert row(text, "batch_norm").endswith("  1.23 (n=1)")
    assert "over rounds" not in text


def test_modes_and_tasks_have_blocks_of_their_own() -> None:
    records = [
        make_timed(),
        make_timed(0.8, config={"mode": "inference", "layout": "nchw"}),
        make_record(
            task="memory", dataset="none", model="resnet18", metrics={"saved_ratio": 0.7224}
        ),
        make_record(0.9),
    ]
    train, inference, memory, accuracy = summary.table(records).split("\n\n")
    assert train.startswith("resnet18, throughput, mode=train\n")
    assert inference.startswith("resnet18, throughput, mode=inference\n")
    assert memory.startswith("resnet18, memory\nsaved_ratio (kept for the backward / batch_norm's)")
    assert row(memory, "batch_norm").endswith("  0.722 (n=1)")
    assert accuracy.startswith("nb_resnet10_1x1 on embedded:mnist\n")
    assert row(accuracy, "batch_norm").endswith("  90.0 (n=1)")


def test_a_task_without_a_main_figure_shows_how_its_cells_ended() -> None:
    records = [make_record(task="capability", metrics={"x": 1.0}),
               make_record(None, task="capability", method="none", status="error")]  # fmt: skip
    text = summary.table(records)
    assert row(text, "batch_norm").split() == ["batch_norm", "ok"]
    assert row(text, "none").split() == ["none", "error", "1/1"]
    assert "test_accuracy" not in text


def test_main_figures_in_words() -> None:
    assert summary.figure(make_record(0.948)) == "test accuracy 94.8%"
    assert summary.figure(make_timed()) == "ratio 1.23 [1.19, 1.31]"
    assert summary.figure(make_timed(half=None)) == "ratio 1.23"
    assert summary.figure(make_record(None)) == ""
    assert summary.figure(make_record(task="step")) == ""


def test_every_main_metric_is_of_a_task() -> None:
    assert {"accuracy", "layer"} <= MAIN_METRICS.keys() & tasks.TASKS.keys()
