"""Every probe, on layers whose answer is known: some that must pass, some made to fail."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normbench import registry
from normbench.capabilities import (
    ALONE,
    SETTINGS,
    THEMES,
    Answer,
    Probe,
    Subject,
    batches,
    costs,
    flops,
    invariances,
    numerics,
    parallel,
    tools,
    weights,
)
from normbench.capabilities.probe import ask, probe
from normbench.tasks import capability

SMALL = {**SETTINGS, "channels": 8, "side": 6, "cost_side": 16, "rounds": 15}
CPU = torch.device("cpu")
PROBES = [probe for theme in THEMES.values() for probe in theme]


class Layer(nn.Module):
    """A made-up method: no parameters, takes what builders are given."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__()
        self.num_features, self.act = num_features, act

    def forward(self, x: Tensor) -> Tensor:
        return x


class Refuses(Layer):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("not today")


class DetachedMean(Layer):
    """Depends on the batch, without a gradient that says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.detach().mean((0, 2, 3), keepdim=True)


class Constant(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class NotFinite(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


class SteepAtZero(Layer):
    """A finite output whose gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).abs().sqrt()


class TwiceInEvaluation(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else 2 * x


class Standardized(Layer):
    """Batch normalization by hand, then deviation 3 and mean 5."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return 3 * (x - mean) / var.sqrt() + 5


class ScalesOnly(Layer):
    """Divides by one number for the whole batch: invariant to the input's scale alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean().sqrt()


class ShiftsOnly(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class ForgetsLayout(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


class SquaresInHalf(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x.square() / 300


class SubtractsInHalf(Layer):
    """Statistics in the input's own type."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        return (x - mean) / (x.square().mean((0, 2, 3), keepdim=True) - mean.square()).sqrt()


class _OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * grad * x**2


class OnlyOnce(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return _OnlyOnce.apply(x)  # type: ignore[no-any-return]


class _WrongTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * grad * x.detach() ** 2


class WrongTwice(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return _WrongTwice.apply(x)  # type: ignore[no-any-return]


class Noisy(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Branches(Layer):
    """Looks at the data to decide, which no tracer can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class EightSamples(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(8, *x.shape[1:])


class Unused(Layer):
    """A parameter without a gradient, which DDP waits for."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__(num_features)
        self.idle = nn.Parameter(torch.ones(num_features))


class MixesChannels(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=1)


class MixesPositions(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=3)


class SixPasses(Layer):
    """Three multiplications, each of which keeps its inputs for backward; buffers and state."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__(num_features)
        self.scale = nn.Parameter(torch.ones(3, num_features))
        self.register_buffer("running", torch.zeros(num_features, num_features))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scale:
            x = (x * scale[:, None, None]).exp()
        return x


class OwnedReLU(Layer):
    """Applies its activation, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.act is None else self.act(x)  # type: ignore[no-any-return]


Answers = Callable[..., dict[str, Answer]]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Layer]], str]:
    """Enter a made-up layer in the catalogue for the length of a test; its name."""
    monkeypatch.setattr(registry, "_METHODS", {n: registry.get(n) for n in registry.list_methods()})

    def enter(layer: type[Layer], **options: Any) -> str:
        name = f"made_up_{layer.__name__.lower()}"
        registry.register(
            name, title=name, family="test", equation="y = x", policy="None.", **options
        )(layer)
        return name

    return enter


@pytest.fixture
def answers(add: Callable[..., str]) -> Answers:
    """A probe's entries for a method of the catalogue or a made-up layer."""

    def put(asked: Probe, method: str | type[Layer], **options: Any) -> dict[str, Answer]:
        name = method if isinstance(method, str) else add(method, **options)
        return ask(asked, Subject(name, registry.resolve_params(name), settings=SMALL))

    return put


@pytest.fixture
def answer(answers: Answers) -> Callable[..., Answer]:
    def put(asked: Probe, method: str | type[Layer]) -> Answer:
        return answers(asked, method)[asked.name]

    return put


YES_OR_NO = [
    (batches.batch_independent, "batch_norm", False, "max |∂f"),
    (batches.batch_independent, DetachedMean, False, "no gradient, but other neighbours"),
    (batches.batch_independent, "layer_norm_chw", True, ""),
    (batches.batch_independent, "none", True, ""),
    (batches.batch_of_one, "batch_norm", True, ""),
    (batches.batch_of_one, Refuses, False, "ZeroDivisionError: not today"),
    (batches.batch_of_one, NotFinite, False, "the output is not finite"),
    (batches.batch_of_one, SteepAtZero, False, "a gradient is not finite"),
    (batches.batch_of_one, Constant, False, "the output is the same for different images"),
    (batches.one_value_per_channel, "batch_norm", False, "values per channel"),
    (batches.one_value_per_channel, DetachedMean, False, "the same for different images"),
    (batches.one_value_per_channel, "layer_norm_chw", True, ""),
    (invariances.input_scale_invariant, ScalesOnly, True, "changes by"),
    (invariances.input_scale_invariant, "none", False, "changes by 9"),
    (invariances.channel_scale_invariant, "batch_norm", True, "changes by"),
    (invariances.channel_scale_invariant, ScalesOnly, False, "changes by"),
    (invariances.input_shift_invariant, ShiftsOnly, True, "changes by"),
    (invariances.input_shift_invariant, ScalesOnly, False, "changes by"),
    (invariances.channel_shift_invariant, "batch_norm", True, "changes by"),
    (invariances.channel_shift_invariant, ShiftsOnly, False, "changes by"),
    (invariances.weight_scale_invariant, "weight_standardization", True, "changes by"),
    (invariances.weight_scale_invariant, ShiftsOnly, False, "changes by 9"),
    (numerics.keeps_channels_last, "batch_norm", True, ""),
    (numerics.keeps_channels_last, ForgetsLayout, False, "the output in training has strides"),
    (numerics.autocast_bf16_finite, "batch_norm", True, ""),
    (numerics.autocast_bf16_finite, NotFinite, False, "the output is not finite"),
    (numerics.autocast_fp16_finite, "batch_norm", True, ""),
    (numerics.autocast_fp16_finite, SquaresInHalf, False, "the output is not finite"),
    (numerics.double_backward, "batch_norm", True, ""),
    (numerics.double_backward, OnlyOnce, False, "once_differentiable"),
    (numerics.double_backward, WrongTwice, False, "GradcheckError"),
    (numerics.deterministic, "batch_norm", True, ""),
    (numerics.deterministic, Noisy, False, "differs between reruns: output"),
    (tools.exports, "batch_norm", True, ""),
    (tools.exports, Branches, False, "data-dependent"),
    (tools.exports, EightSamples, False, "only with a fixed batch size"),
    (weights.loads_batch_norm_keys, "batch_norm", True, "changes by 0"),
    (weights.loads_batch_norm_keys, "group_norm", False, "Unexpected key(s)"),
    (weights.carries_pretrained, "batch_norm", True, "changes by 0"),
    (weights.carries_pretrained, "group_norm", False, "the evaluation output changes by"),
    (weights.folds_into_convolution, "batch_norm", True, ""),
    (weights.folds_into_convolution, "group_norm", False, "not linear"),
    (weights.folds_into_convolution, MixesChannels, False, "channels affect each other"),
    (weights.folds_into_convolution, MixesPositions, False, "positions or samples"),
]


@pytest.mark.parametrize(
    ("asked", "method", "value", "words"),
    YES_OR_NO,
    ids=[f"{p.name}-{getattr(m, '__name__', m)}" for p, m, _, _ in YES_OR_NO],
)
def test_yes_or_no(
    answer: Callable[..., Answer],
    asked: Probe,
    method: str | type[Layer],
    value: bool,
    words: str,
) -> None:
    found = answer(asked, method)
    assert (found.value, words in found.reason) == (value, True), found


def test_every_yes_or_no_is_seen_as_both() -> None:
    slow = {tools.compiles, tools.onnx_agrees, parallel.ddp_averages}
    asked = {(probe.name, value) for probe, _, value, _ in YES_OR_NO}
    questions = [probe for probe in PROBES if not probe.unit and probe not in slow]
    missing = {(p.name, value) for p in questions for value in (True, False)} - asked
    assert missing == set()


NUMBERS = [
    (batches.train_eval_gap, "none", 0.0, 0.0),
    (batches.train_eval_gap, TwiceInEvaluation, 0.5, 1e-6),
    (batches.channel_mean, Standardized, 5.0, 1e-6),
    (batches.channel_mean, "batch_norm", 0.0, 1e-6),
    (batches.channel_variance, Standardized, 8.0, 1e-6),
    (batches.channel_variance, "batch_norm", 0.0, 1e-3),
    (numerics.autocast_bf16_error, "none", 0.0, 0.0),
    (numerics.autocast_fp16_error, "none", 0.0, 0.0),
    (costs.parameters_per_channel, "none", 0.0, 0.0),
    (costs.parameters_per_channel, "batch_norm", 2.0, 0.0),
    (costs.parameters_per_channel, SixPasses, 3.0, 0.0),
    (costs.buffers_per_channel, "batch_norm", 2.0, 0.0),
    (costs.buffers_per_channel, SixPasses, 8.0, 0.0),
]


@pytest.mark.parametrize(
    ("asked", "method", "expected", "within"),
    NUMBERS,
    ids=[f"{p.name}-{getattr(m, '__name__', m)}" for p, m, _, _ in NUMBERS],
)
def test_numbers(
    answer: Callable[..., Answer],
    asked: Probe,
    method: str | type[Layer],
    expected: float,
    within: float,
) -> None:
    assert answer(asked, method).value == pytest.approx(expected, abs=within)


def test_statistics_in_half_precision_show_in_the_error(answer: Callable[..., Answer]) -> None:
    for asked in (numerics.autocast_bf16_error, numerics.autocast_fp16_error):
        good, bad = answer(asked, "batch_norm").value, answer(asked, SubtractsInHalf).value
        assert good is not None
        assert good < 0.003
        assert bad is None or bad > 5 * good  # None: not even finite


def test_fresh_averages_leave_a_gap_between_training_and_evaluation(
    answer: Callable[..., Answer],
) -> None:
    arrived, late = (
        answer(batches.train_eval_gap, name).value for name in ("batch_norm", "batch_renorm")
    )
    assert arrived is not None
    assert late is not None
    assert 0 < arrived < 0.2 < late  # momentum 0.1 and 0.01


@pytest.mark.parametrize(
    ("method", "with_relu", "alone"),
    # of SixPasses: the input, the three results of exp (two are inputs too), that of the ReLU
    [("none", 4, 0), ("batch_norm", 8, 4), (SixPasses, 20, 16)],
)
def test_bytes_kept_for_backward(
    answers: Answers, method: str | type[Layer], with_relu: float, alone: float
) -> None:
    entries = answers(costs.saved_bytes, method)
    assert entries["saved_bytes"].value == pytest.approx(with_relu, abs=0.1)
    assert entries["saved_bytes" + ALONE].value == pytest.approx(alone, abs=0.1)


def test_passes_over_the_activation(answers: Answers) -> None:
    forward = {m: answers(costs.passes_forward, m) for m in ("none", "batch_norm")}
    forward["made up"] = answers(costs.passes_forward, SixPasses)
    assert [e["passes_forward"].value for e in forward.values()] == [1, 2, 7]
    assert [e["passes_forward" + ALONE].value for e in forward.values()] == [0, 1, 6]
    assert answers(costs.passes_backward, "batch_norm")["passes_backward"].value == 2


class Convolves(Layer):
    """A 1×1 convolution as a matrix product: 2·8 per element with 8 channels."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.eye(8) @ x.flatten(2)).reshape(x.shape)


@pytest.mark.parametrize(
    ("method", "with_relu", "alone"),
    # batch norm: sum; subtract, square, add; scale, shift
    [("none", 1, 0), ("batch_norm", 7, 6), (SixPasses, 7, 6), (Convolves, 17, 16)],
)
def test_flops_are_counted(
    answers: Answers, method: str | type[Layer], with_relu: float, alone: float
) -> None:
    entries = answers(flops.flops_per_element, method)
    assert entries["flops_per_element"].value == with_relu
    assert entries["flops_per_element" + ALONE].value == alone


def test_an_op_that_cannot_be_counted_is_named(answers: Answers) -> None:
    entry = answers(flops.flops_per_element, MixesChannels)["flops_per_element"]
    assert entry == Answer(None, "missing: no count for roll")


def test_time_is_relative_to_batch_norm(answers: Answers) -> None:
    less, more = (answers(costs.time_ratio, method)["time_ratio"] for method in ("none", SixPasses))
    assert less.value is not None
    assert more.value is not None
    assert less.value < 0.8 < 1.2 < more.value
    assert "p20" in less.reason


def test_owners_of_their_activation_are_also_probed_without(answers: Answers) -> None:
    owner = answers(batches.channel_mean, OwnedReLU, consumes_activation=True)
    plain = answers(batches.channel_mean, "none")
    assert owner["channel_mean" + ALONE] == plain["channel_mean"]
    assert owner["channel_mean"] != owner["channel_mean" + ALONE]
    assert len(plain) == 1


def test_an_owners_relu_counts_as_the_one_that_follows_others(answers: Answers) -> None:
    owner = answers(costs.saved_bytes, OwnedReLU, consumes_activation=True)
    assert owner == answers(costs.saved_bytes, "none")


def test_a_crash_is_an_entry(answer: Callable[..., Answer]) -> None:
    found = answer(invariances.input_scale_invariant, Refuses)
    assert found.value is None
    assert found.reason.startswith("crashed: ZeroDivisionError: not today (test_capability.py:")


def test_a_number_that_is_none_is_said_to_be_undefined(answer: Callable[..., Answer]) -> None:
    found = answer(batches.channel_mean, NotFinite)
    assert found == Answer(None, "undefined: the result is nan") or found == Answer(
        None, "undefined: the result is inf"
    )


def test_a_missing_package_is_an_entry(
    answer: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        tools.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else find(n)
    )
    found = answer(tools.onnx_agrees, "batch_norm")
    assert found.value is None
    assert found.reason.startswith("missing: package")
    assert "onnxruntime" in found.reason


def test_onnxruntime_agrees(answer: Callable[..., Answer]) -> None:
    for name in tools.ONNX_PACKAGES:
        pytest.importorskip(name)
    assert answer(tools.onnx_agrees, "group_norm").value is True
    assert answer(tools.onnx_agrees, Branches).value is False


def test_fast_leaves_slow_probes_out_and_says_so() -> None:
    subject = Subject("none", settings={**SMALL, "fast": True})
    assert ask(tools.compiles, subject)["compiles"] == Answer(
        None, "skipped: takes seconds, left out by --fast"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "value"), [("batch_norm", True), (Branches, False)])
def test_compiled(answer: Callable[..., Answer], method: str | type[Layer], value: bool) -> None:
    assert answer(tools.compiles, method).value is value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "value"), [("batch_norm", True), ("weight_standardization", True), (Unused, False)]
)
def test_ddp(answer: Callable[..., Answer], method: str | type[Layer], value: bool) -> None:
    found = answer(parallel.ddp_averages, method)
    assert found.value is value, found


def test_probes_have_names_and_words_of_their_own() -> None:
    assert len({p.name for p in PROBES}) == len({p.heading for p in PROBES}) == len(PROBES)
    assert all(p.description.endswith(".") and "\n" not in p.description for p in PROBES)


def test_the_page_explains_every_probe(root: Path) -> None:
    page = (root / "docs/capabilities.md").read_text(encoding="utf-8")
    assert [p.name for p in PROBES if f"| `{p.name}` |" not in page] == []


def test_a_probe_does_not_disturb_or_depend_on_random_numbers() -> None:
    subject = Subject("batch_norm", settings=SMALL)
    torch.manual_seed(1)
    first = ask(batches.train_eval_gap, subject)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert ask(batches.train_eval_gap, subject) == first


def small(method: str) -> Any:
    cell = capability.cell(method, fast=True)
    return replace(cell, config={**cell.config, **SMALL, "fast": True})


def test_the_record_has_every_probe_with_value_and_reason() -> None:
    fractions: list[float] = []
    outcome = capability.run(small("batch_norm"), CPU, fractions.append)
    entries = outcome.slots["probes"]
    assert {p.name for p in PROBES} <= set(entries)
    assert all(set(entry) == {"value", "reason"} for entry in entries.values())
    assert [n for n, e in entries.items() if e["reason"].startswith("crashed")] == []
    assert outcome.metrics["batch_independent"] == 0.0
    assert outcome.metrics["deterministic"] == 1.0
    assert "compiles" not in outcome.metrics
    assert all(map(math.isfinite, outcome.metrics.values()))
    assert fractions == sorted(fractions)


def test_a_layer_that_always_raises_still_fills_the_table(add: Callable[..., str]) -> None:
    outcome = capability.run(small(add(Refuses)), CPU, lambda fraction: None)
    entries = outcome.slots["probes"]
    assert {p.name for p in PROBES} <= set(entries)
    assert entries["batch_of_one"]["value"] is False
    assert entries["input_scale_invariant"]["reason"].startswith("crashed: ZeroDivisionError")


def test_a_layer_that_cannot_be_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @probe("fails")
    def fails(subject: Subject) -> Answer:
        """Cannot be answered."""
        raise OSError("gone")

    monkeypatch.setattr("normbench.capabilities.THEMES", {"Only": (fails,)})
    outcome = capability.run(small("none"), CPU, lambda fraction: None)
    assert outcome.status == "error"
    assert outcome.reason.startswith("no probe could be answered: crashed: OSError: gone")


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.list_methods())
def test_every_method_fills_the_table_without_a_crash(name: str) -> None:
    outcome = capability.run(small(name), CPU, lambda fraction: None)
    crashed = {n: e["reason"] for n, e in outcome.slots["probes"].items()
               if e["reason"].startswith("crashed")}  # fmt: skip
    assert crashed == {}


def test_the_cell_is_the_same_work_for_the_same_parameters() -> None:
    given = capability.cell("group_norm", {"groups": 4})
    assert given.variant == "group_norm(groups=4)"
    assert given.params == registry.resolve_params("group_norm", {"groups": 4})
    assert (given.task, given.model, given.dataset, given.batch_size) == (
        "capability", "layer", "none", 8,
    )  # fmt: skip
