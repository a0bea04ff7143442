"""The records that ship with the package: readable, complete, and what the README says of them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from normbench import tasks
from normbench.cells import digest
from normbench.leaderboard import sources
from normbench.store import wide

COSTS = {
    "throughput": 192, "small-batch-cost": 42, "memory": 192, "inference": 192, "compiled": 24,
}  # fmt: skip
"""Cells of the suites that measure costs; some are refused by a method."""

LAYERS = 54 * (2 * 2 + 3) + 3
"""Every method at two shapes, forward and both, and at three large ones; SyncBN communicating."""


@pytest.fixture(scope="module")
def accepted(root: Path) -> pl.DataFrame:
    frame, problems = sources.read([root / "leaderboard" / "results"])
    assert problems == []
    return wide(frame)


def test_every_cell_of_the_shipped_suites_was_measured(accepted: pl.DataFrame) -> None:
    counts = dict(accepted.group_by("suite").len().iter_rows())
    assert counts == {
        "small-batch": 126,
        "timm-smoke": 4,
        "capabilities": 54,
        "layers": LAYERS,
        **COSTS,
    }
    assert set(accepted.filter(~pl.col("suite").is_in(list(COSTS)))["status"]) == {"ok"}
    assert set(accepted.filter(suite="timm-smoke")["model"]) == {
        "resnet18",
        "mobilenetv3_small_100",
    }


def test_costs_are_there_for_every_method_that_the_models_allow(accepted: pl.DataFrame) -> None:
    """In ConvNeXt some lack values per channel (its last norm sees 1×1 maps) or branches."""
    costs = accepted.filter(pl.col("suite").is_in(list(COSTS)))
    assert set(costs["status"]) == {"ok", "unsupported"}
    refused = costs.filter(status="unsupported")
    assert set(refused["model"]) == {"convnext_atto"}
    assert set(refused["method"]) <= {"instance_norm", "ibn_a", "fixup", "skip_init"}
    trained = costs.filter(suite="throughput", status="ok")
    assert set(trained["model"]) == {"resnet50", "efficientnet_b0", "convnext_atto"}
    assert trained["ratio"].is_not_null().all()
    assert trained["ratio_low"].is_not_null().all()


@pytest.mark.parametrize("task", ["throughput", "memory"])
def test_costs_are_of_the_present_protocol(accepted: pl.DataFrame, task: str) -> None:
    assert set(accepted.filter(task=task)["protocol"]) == {tasks.get(task).PROTOCOL}


def test_the_null_tests_of_the_accepted_times_hold(accepted: pl.DataFrame) -> None:
    """Batch norm against itself; an interval of 96% may miss 1 now and then."""
    times = accepted.filter(task="throughput", method="batch_norm")
    held = times.filter((pl.col("ratio_low") <= 1) & (pl.col("ratio_high") >= 1))
    assert len(held) >= 0.9 * len(times) > 0
    kept = accepted.filter(task="memory", method="batch_norm")
    assert set(kept["saved_ratio"]) == {1.0} == set(kept["peak_ratio"])


def test_no_accepted_record_is_of_an_eager_path_on_a_board(accepted: pl.DataFrame) -> None:
    on_boards = ("accuracy", "throughput", "memory")
    assert set(accepted.filter(pl.col("task").is_in(on_boards))["fallback"]) == {""}


def test_every_small_batch_cell_took_300_steps(accepted: pl.DataFrame) -> None:
    assert accepted.filter(suite="small-batch")["steps"].min() >= 300  # type: ignore[operator]


def test_batch_norm_collapses_where_two_values_are_pooled_and_only_there(
    accepted: pl.DataFrame,
) -> None:
    def mean(variant: str, model: str) -> float:
        rows = accepted.filter(variant=variant, model=model, batch_size=2, suite="small-batch")
        assert len(rows) == 3
        return float(rows["test_accuracy"].mean())  # type: ignore[arg-type]

    plain, repaired = "batch_norm(eps=1e-05)", "batch_norm(eps=0.001)"
    assert mean(plain, "nb_resnet10_1x1") < 0.5 < mean(repaired, "nb_resnet10_1x1")
    assert mean("group_norm(groups=8)", "nb_resnet10_1x1") > mean(repaired, "nb_resnet10_1x1")
    assert mean(plain, "nb_resnet10_4x4") > 0.7


def test_names_of_the_files_are_digests_of_their_content(root: Path) -> None:
    assert len(digest("any")) == 16
    names = [p.stem for p in (root / "leaderboard" / "results").glob("*.parquet")]
    assert names
    assert all(len(name) == 16 for name in names)
