"""Boards against values computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from synthetic_records import record

from normbench.leaderboard.boards import Board, Entry, contrasts

BoardsOf = Callable[..., list[Board]]
GROUP = {"method": "group_norm", "variant": "group_norm", "params": {"groups": 32}}


def entry(board: Board, variant: str, batch_size: int = 2) -> Entry:
    return {v.name: v for v in board.variants}[variant].entries[batch_size]


def seeds(*values: float, **fields: object) -> list[object]:
    return [record(seed=i, accuracy=v, **fields) for i, v in enumerate(values)]  # type: ignore[arg-type]


def test_mean_and_t_interval_over_seeds(boards_of: BoardsOf) -> None:
    [board] = boards_of(*seeds(0.90, 0.92, 0.94, **GROUP))
    interval = entry(board, "group_norm").interval
    assert interval is not None
    half = 4.30265273 * 0.02 / 3**0.5  # t(0.975, 2 degrees of freedom) · s / √n
    assert (interval.mean, interval.high - interval.mean) == pytest.approx((0.92, half))


def test_difference_is_paired_by_seed(boards_of: BoardsOf) -> None:
    [board] = boards_of(*seeds(0.50, 0.60, 0.70), *seeds(0.61, 0.72, 0.83, **GROUP))
    difference = entry(board, "group_norm").difference
    assert difference is not None
    half = 4.30265273 * 0.01 / 3**0.5  # differences 0.11, 0.12, 0.13
    assert (difference.mean, difference.high - difference.mean) == pytest.approx((0.12, half))


def test_the_reference_has_no_difference_to_itself(boards_of: BoardsOf) -> None:
    [board] = boards_of(*seeds(0.5, 0.6), *seeds(0.7, 0.8, **GROUP))
    assert entry(board, board.reference).difference is None


def test_records_of_other_tasks_have_no_say_in_the_reference(boards_of: BoardsOf) -> None:
    other = {"task": "capability", "variant": "batch_norm", "params": {}}
    [board] = boards_of(*seeds(0.5), *seeds(0.6, **GROUP), *seeds(0.5, **other))
    assert board.reference == "batch_norm(eps=1e-05)"


def test_reference_is_batch_norm_with_the_usual_eps(boards_of: BoardsOf) -> None:
    large = {"variant": "batch_norm(eps=0.001)", "params": {"eps": 1e-3}}
    tuned = {"variant": "batch_norm(eps=1e-05, momentum=0.01)", "params": {"eps": 1e-5}}
    early = [s for v in (large, tuned) for s in seeds(0.5, started_at="2026-01-01T00:00:00Z", **v)]
    [board] = boards_of(*early, *seeds(0.5), *seeds(0.5, **GROUP))
    assert board.reference == "batch_norm(eps=1e-05)"


@pytest.mark.parametrize(
    "other",
    [
        {"hardware_class": "gpu-invented"},
        {"protocol": 2},
        {"precision": "bf16"},
        {"dataset": "embedded:digits"},
        {"model": "resnet18"},
        {"config": {"samples": 1, "min_steps": 300, "optimizer": "sgd", "lr": 0.1}},
        {"dataset_args": {"train_samples": 100}},
        {"batch_size": 4, "data_fingerprint": "changed"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_cannot_be_compared_is_on_boards_of_its_own(
    boards_of: BoardsOf, other: dict[str, object]
) -> None:
    made = boards_of(*seeds(0.5, 0.6), *seeds(0.7, 0.8, **other))
    means = [[e.interval.mean for v in b.variants for e in v.entries.values()] for b in made]  # type: ignore[union-attr]
    assert sorted(means) == [[pytest.approx(0.55)], [pytest.approx(0.75)]]


def test_cells_measured_again_on_changed_data_leave_only_the_new_ones(boards_of: BoardsOf) -> None:
    later = {"data_fingerprint": "changed", "started_at": "2026-02-01T00:00:00Z"}
    [board] = boards_of(*seeds(0.5, 0.6), *seeds(0.7, 0.8, **later))
    assert entry(board, board.reference).values == {0: 0.7, 1: 0.8}


def test_data_that_changed_between_seeds_are_not_averaged_over(boards_of: BoardsOf) -> None:
    made = boards_of(record(seed=0), record(seed=1, data_fingerprint="changed"))
    assert [entry(b, b.reference).seeds for b in made] == [1, 1]


def test_a_cell_that_ended_before_reading_its_data_is_on_the_board_of_the_rest(
    boards_of: BoardsOf,
) -> None:
    lost = record(seed=2, accuracy=None, status="timeout", data_fingerprint="")
    [board] = boards_of(*seeds(0.8, 0.9), lost)
    assert entry(board, board.reference).failures == {"timeout": 1}


def test_failed_seeds_are_counted_and_leave_the_mean(boards_of: BoardsOf) -> None:
    lost = record(seed=2, accuracy=None, status="diverged", reason="loss was nan at step 7")
    [board] = boards_of(*seeds(0.8, 0.9), lost)
    found = entry(board, board.reference)
    assert found.interval is not None
    assert (found.interval.mean, found.failures) == (pytest.approx(0.85), {"diverged": 1})
    assert found.reasons == ("loss was nan at step 7",)


def test_a_variant_that_only_failed_is_still_an_entry(boards_of: BoardsOf) -> None:
    refused = record(accuracy=None, status="unsupported", reason="no statistics", batch_size=1)
    [board] = boards_of(refused)
    found = entry(board, board.reference, 1)
    assert (found.interval, found.failures) == (None, {"unsupported": 1})


def test_values_per_channel_are_the_smallest_of_the_column(boards_of: BoardsOf) -> None:
    [board] = boards_of(
        record(batch_size=2, metrics={"min_values_per_channel": 2.0}),
        record(batch_size=8, metrics={"min_values_per_channel": 128.0}),
    )
    assert [board.values_per_channel(b) for b in board.batch_sizes] == [(2, 2), (128, 128)]


def test_below_five_seeds_nothing_is_ranked(boards_of: BoardsOf) -> None:
    [board] = boards_of(*seeds(0.1, 0.1, 0.2, 0.1), *seeds(0.9, 0.9, 0.8, 0.9, **GROUP))
    assert not board.ranked


def test_five_seeds_are_ranked(boards_of: BoardsOf) -> None:
    [board] = boards_of(
        *seeds(0.10, 0.12, 0.11, 0.10, 0.13), *seeds(0.90, 0.91, 0.92, 0.90, 0.91, **GROUP)
    )
    ranks = [str(entry(board, name).rank) for name in ("group_norm", board.reference)]
    assert ranks == ["1", "2"]


def test_a_variant_that_lost_a_seed_is_not_ranked_by_the_others(boards_of: BoardsOf) -> None:
    lost = record(seed=5, accuracy=None, status="diverged", **GROUP)
    [board] = boards_of(*seeds(*[0.1] * 6), *seeds(*[0.9] * 5, **GROUP), lost)
    assert entry(board, "group_norm").rank is None


def test_variants_stand_by_family_and_name_not_by_score(study: list[Board]) -> None:
    keys = [(v.family == "", v.family, v.method, v.name) for v in study[0].variants]
    assert keys == sorted(keys)


def test_current_code_replaces_older_code(boards_of: BoardsOf) -> None:
    [board] = boards_of(
        *seeds(0.9, 0.9, 0.9, code_hash="0ld", started_at="2026-09-09T00:00:00Z"), *seeds(0.5)
    )
    found = entry(board, board.reference)
    assert (dict(found.values), found.older_code) == ({0: 0.5}, False)


def test_older_code_alone_is_shown_as_such(boards_of: BoardsOf) -> None:
    [board] = boards_of(*seeds(0.9, 0.9, code_hash="0ld"))
    assert entry(board, board.reference).older_code


def test_a_method_outside_the_catalogue_is_shown(boards_of: BoardsOf) -> None:
    plugin = {"method": "my_norm", "variant": "my_norm", "params": {}}
    [board] = boards_of(*seeds(0.9, **plugin))
    assert (board.variants[0].name, entry(board, "my_norm").older_code) == ("my_norm", False)


def test_of_repeats_the_latest_counts_not_the_best(boards_of: BoardsOf) -> None:
    [board] = boards_of(
        record(accuracy=0.9, started_at="2026-01-01T00:00:00Z"),
        record(accuracy=0.4, started_at="2026-01-02T00:00:00Z"),
    )
    assert dict(entry(board, board.reference).values) == {0: 0.4}


def test_a_later_fault_does_not_hide_a_measurement(boards_of: BoardsOf) -> None:
    [board] = boards_of(
        record(accuracy=0.9, started_at="2026-01-01T00:00:00Z"),
        record(accuracy=None, status="error", started_at="2026-01-02T00:00:00Z"),
    )
    assert dict(entry(board, board.reference).values) == {0: 0.9}


def test_contrast_names_the_one_parameter_that_differs(study: list[Board]) -> None:
    [found] = contrasts(study[0])
    told = (found.parameter, found.value, found.reference_value, found.changed.variant)
    assert told == ("eps", 1e-3, 1e-5, "batch_norm(eps=0.001)")
