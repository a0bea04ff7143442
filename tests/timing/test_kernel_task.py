"""Task `kernel` with CUDA's modes played on a CPU, and as it runs on one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from made_up_watch import COPY_BANDWIDTH, MadeUpWatch

from normbench import registry
from normbench.cells import Cell
from normbench.engine.execute import execute
from normbench.tasks import kernel
from normbench.tasks.outcome import Outcome
from normbench.timing import contestants
from normbench.timing.case import FORMS, Case

CPU = torch.device("cpu")
MODES, PARTS = ("cleared", "graph", "warm"), ("forward", "backward", "both")


def make_cell(method: str = "batch_norm_triton", form: str = "add_relu", *peers: str) -> Cell:
    return Cell(
        suite="kernels", task="kernel", method=method, params=registry.resolve_params(method),
        variant=registry.variant(method), model="layer", model_args={}, dataset="none",
        dataset_args={}, batch_size=2, seed=0, precision="fp32",
        config={
            "form": form, "channels": 6, "height": 5, "width": 5, "layout": "nhwc",
            "peers": list(peers), "timeout_seconds": 100,
        },
    )  # fmt: skip


def measured(cell: Cell, l2_bytes: int = 6000) -> tuple[Outcome, MadeUpWatch]:
    watch = MadeUpWatch(CPU, l2_bytes)
    return kernel.run(cell, CPU, lambda fraction: None, lambda device: watch), watch


def test_every_mode_and_part_is_timed_and_summed_up() -> None:
    outcome, _ = measured(make_cell("batch_norm_triton", "add_relu", "eager"))
    metrics = outcome.metrics
    for mode in MODES:
        for part in PARTS:
            seconds = metrics[f"{mode}_{part}_seconds"]
            share = metrics[f"{part}_bytes_to_move"] / seconds / COPY_BANDWIDTH
            assert metrics[f"{mode}_{part}_share_of_copy"] == pytest.approx(share)
            # Ours is asked for first, and every timer is a microsecond slower than the last.
            assert metrics[f"eager_{mode}_{part}_seconds"] == pytest.approx(seconds + 1e-6)
            assert metrics[f"eager_{mode}_{part}_ratio"] > 1
    assert metrics["copy_bytes_per_second"] == pytest.approx(COPY_BANDWIDTH)
    assert (metrics["forward_kernels"], metrics["eager_peak_memory_bytes"]) == (3, 1000)
    trial = outcome.trials[0]
    assert list(trial["samples"]) == [f"{mode}_{part}" for mode in MODES for part in PARTS]
    assert len(outcome.samples) == len(trial["samples"]["graph_both"]) >= 15


def test_graphs_go_over_four_times_the_cache_and_warm_ones_over_one_set() -> None:
    # 300 values of 4 bytes: input, residual and output are 3600 bytes; 24000 take seven sets.
    outcome, watch = measured(make_cell())
    assert outcome.metrics["sets"] == 7
    assert watch.log == [("cleared", 1)] * 3 + [("graph", 7)] * 3 + [("again", 10)] * 3


def test_a_peer_that_fails_is_told_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "attorch", None)  # as where it is not installed
    outcome, _ = measured(make_cell("batch_norm_triton", "relu", "attorch", "eager"))
    assert outcome.status == "ok"
    assert [trial["status"] for trial in outcome.trials] == ["ok", "error", "ok"]
    assert "ModuleNotFoundError" in outcome.trials[1]["reason"]
    assert "eager_graph_both_ratio" in outcome.metrics


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_capture_that_broke_off_is_told(spoilt: bool) -> None:
    watch = MadeUpWatch(CPU)
    watch.spoilt = spoilt
    outcome = kernel.run(make_cell(), CPU, lambda fraction: None, lambda device: watch)
    assert outcome.spoilt == spoilt


def test_a_failure_of_ours_is_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(kernel, "build", broken)
    assert execute(make_cell(), device=CPU).status == "oom"


def test_on_a_cpu_there_is_one_mode_and_the_record_says_what_ran() -> None:
    record = execute(make_cell("batch_norm_triton", "none"), device=CPU)
    assert (record.status, record.reason) == ("ok", "")
    assert {name for name in record.metrics if name.endswith("_p20_seconds")} == {
        f"launched_{part}_p20_seconds" for part in PARTS
    }
    assert "CUDA" in record.fallback


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "method", ["batch_norm_triton", "batch_renorm_triton", "proxy_norm", "group_norm_triton"]
)
def test_the_eager_peer_computes_the_same(method: str, form: str) -> None:
    if FORMS[form].residual and not registry.get(method).fuses_residual:
        pytest.skip(f"{method} takes no residual")
    case = Case(form, (4, 6, 5, 5), "nhwc", "fp32")
    given = case.inputs(CPU)
    outputs = []
    for name in (contestants.OURS, "eager", "eager_nchw"):
        torch.manual_seed(0)  # of the parameters
        built = contestants.build(name, method, {}, case, CPU)
        assert built.case.layout == ("nchw" if name == "eager_nchw" else "nhwc")
        outputs.append(given.forward(built.layer))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-5)


def test_renorm_is_timed_where_its_limits_are_open() -> None:
    case = Case("relu", (4, 6, 5, 5), "nhwc", "fp32")
    layer = contestants.build("ours", "batch_renorm_triton", {}, case, CPU).layer
    layer(torch.randn(4, 6, 5, 5) * 2)
    assert int(layer.active_steps) == 1


def test_half_types_have_their_own_inputs() -> None:
    case = Case("relu", (4, 6, 5, 5), "nchw", "bf16")
    built = contestants.build("eager_fp16", "batch_norm_triton", {}, case, CPU)
    assert (built.case.layout, built.case.precision) == ("nchw", "fp16")
    assert all(p.dtype is torch.float32 for p in built.layer.parameters())
