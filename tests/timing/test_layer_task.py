"""Task `layer`: what is timed, what becomes of it, and with CUDA's modes played on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_up_watch import MadeUpWatch, NoGraphs

import normbench
from normbench import registry
from normbench.engine.execute import execute
from normbench.tasks import layer
from normbench.timing import layers
from normbench.timing.case import Case
from normbench.timing.options import OptionError

CPU = torch.device("cpu")
SHAPE = (4, 6, 5, 5)
TIMES = {
    f"{who}{rank}seconds" for who in ("", "reference_") for rank in ("", "p20_", "p80_")
}  # fmt: skip
METRICS = TIMES | {"rounds", "ratio", "ratio_low", "ratio_high"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "LEAST", 6)
    monkeypatch.setattr(layer, "MOST", 6)


def measured(method: str = "group_norm", **options: Any) -> Any:
    return layer.run(
        layer.cell(method, shape=SHAPE, **options), CPU, lambda fraction: None, MadeUpWatch
    )


def test_ratios_are_of_the_methods_time_to_batch_norms_in_each_mode(short: None) -> None:
    outcome = measured()
    metrics = outcome.metrics
    # Ours is asked for first, and every timer is a microsecond slower than the last.
    assert (metrics["seconds"], metrics["reference_seconds"]) == pytest.approx((1e-6, 2e-6))
    assert metrics["ratio"] == pytest.approx(1 / 2)
    assert metrics["graph_ratio"] == pytest.approx(3 / 4)
    assert (metrics["ratio_low"], metrics["ratio_high"]) == pytest.approx((1 / 2, 1 / 2))
    assert set(metrics) == METRICS | {f"graph_{name}" for name in METRICS}
    assert outcome.samples == (1e-6,) * 6
    assert [trial["config"]["contestant"] for trial in outcome.trials] == ["ours", "batch_norm"]
    assert outcome.trials[1]["samples"] == {"launched": [2e-6] * 6, "graph": [4e-6] * 6}


def test_what_no_graph_can_hold_is_told_and_fails_nothing(short: None) -> None:
    cell = layer.cell("group_norm", shape=SHAPE)
    outcome = layer.run(cell, CPU, lambda fraction: None, NoGraphs)
    assert set(outcome.metrics) == METRICS
    assert outcome.spoilt
    assert "ours: graph: RuntimeError: a value was read on the host" in outcome.notes


@pytest.mark.parametrize("part", layer.CELL_PARTS)
@pytest.mark.parametrize("method", normbench.list_methods())
def test_every_method_is_timed_on_a_cpu(
    method: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEAST", "MOST", "WARM_UP"):
        monkeypatch.setattr(layer, name, 1)
    record = execute(layer.cell(method, shape=(4, 32, 5, 5), part=part), device=CPU)
    assert (record.status, record.reason) == ("ok", "")
    assert set(record.metrics) == METRICS - {"ratio_low", "ratio_high"}


def test_where_batch_norm_has_no_statistics_there_is_no_ratio(short: None) -> None:
    outcome = layer.run(
        layer.cell("layer_norm_chw", shape=(1, 6, 1, 1)), CPU, lambda fraction: None
    )
    assert "seconds" in outcome.metrics
    assert "ratio" not in outcome.metrics
    assert "more than 1 value per channel" in outcome.notes[0]


def test_a_method_that_refuses_ends_unsupported() -> None:
    record = execute(layer.cell("batch_renorm", shape=(1, 6, 1, 1)), device=CPU)
    assert record.status == "unsupported"
    assert "values per channel" in record.reason


def test_the_cell_names_the_threads(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    works = layers.works

    def watched(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return works(*given)

    monkeypatch.setattr(layer, "works", watched)
    measured(threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_renorm_is_timed_where_its_limits_are_open() -> None:
    made = layers.prepared("batch_renorm", {}, Case("relu", SHAPE, "nchw", "fp32"))
    made.train()(torch.randn(SHAPE) * 3)
    (renorm,) = (module for module in made.modules() if hasattr(module, "active_steps"))
    assert int(renorm.active_steps) == 1


@pytest.mark.parametrize("form", layer.ACTIVATIONS)
def test_the_activation_follows_or_is_the_methods_own(form: str) -> None:
    acts = 1 if form == "relu" else 0
    for method in ("batch_norm", "proxy_norm"):
        made = layers.prepared(method, {}, Case(form, SHAPE, "nchw", "fp32"))
        assert sum(isinstance(m, torch.nn.ReLU) for m in made.modules()) == acts
        followed = isinstance(made, torch.nn.Sequential)
        assert followed == (acts == 1 and method == "batch_norm")


def test_the_input_is_as_the_cell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Seeing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.shape, x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return x * 1

    monkeypatch.setattr(layers, "prepared", lambda *given: Seeing())
    cell = layer.cell("group_norm", shape=SHAPE, layout="nhwc", precision="bf16")
    layers.works(cell, CPU)["ours"]()()
    assert seen == [(SHAPE, torch.bfloat16, True)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "backward"}, "part is 'backward'; expected forward or both"),
        ({"activation": "silu"}, "activation is 'silu'"),
        ({"layout": "nchwc"}, "layout is 'nchwc'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"threads": 0}, "threads is 0"),
        ({"shape": (0, *SHAPE[1:])}, "batch_size is 0"),
        ({"processes": 3}, "processes is 3"),
        ({"processes": 2}, "group_norm says nothing to other processes"),
    ],
)
def test_what_is_not_measured_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        layer.cell("group_norm", **{"shape": SHAPE, **options})


def test_a_cell_says_its_variant() -> None:
    cell = layer.cell("group_norm", {"groups": 2}, shape=SHAPE)
    assert cell.variant == "group_norm(groups=2)"
    assert cell.params == registry.resolve_params("group_norm", {"groups": 2})


def test_rounds_are_as_many_as_fit_within_bounds() -> None:
    assert [layer.rounds(seconds) for seconds in (1e-6, 0.02, 3.0)] == [200, 50, 15]


def test_the_share_of_communication_is_of_the_methods_time() -> None:
    entries = layer.entries_of(
        {"ours": [4e-3] * 6, "batch_norm": [2e-3] * 6, "communication": [1e-3] * 6}
    )
    metrics = layer.outcome(entries).metrics
    assert metrics["ratio"] == pytest.approx(2)
    assert metrics["communication_seconds"] == pytest.approx(1e-3)
    assert metrics["communication_share"] == pytest.approx(1 / 4)
