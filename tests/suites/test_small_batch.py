"""The demo's answer, trained anew: where BatchNorm collapses, and where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

import normbench

SUITE = Path(__file__).parents[2] / "suites" / "small-batch.yaml"


@pytest.mark.slow
def test_batch_norm_collapses_at_batch_2_where_two_values_are_pooled(tmp_path: Path) -> None:
    summary = normbench.run(
        SUITE,
        out=tmp_path,
        device="cpu",
        filters=["batch_size=2", "seed=0", "method=batch_norm,group_norm"],
    )
    accuracy = {
        (record.cell.model.removeprefix("nb_resnet10_"), record.cell.variant): record.metrics[
            "test_accuracy"
        ]
        for record in summary.records
    }
    usual, large, group = "batch_norm(eps=1e-05)", "batch_norm(eps=0.001)", "group_norm(groups=8)"
    assert set(accuracy) == {(m, v) for m in ("1x1", "4x4") for v in (usual, large, group)}
    assert accuracy["1x1", usual] < 0.5 < accuracy["1x1", large] < accuracy["1x1", group] - 0.05
    assert accuracy["1x1", group] > 0.85
    assert accuracy["4x4", usual] > 0.7
    assert abs(accuracy["4x4", usual] - accuracy["4x4", large]) < 0.1
