"""Answers of probes on layers for which they are known: some that must pass, some that must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_up_layers import (
    PROBES,
    Branches,
    Constant,
    DetachedMean,
    EightSamples,
    ForgetsLayout,
    Layer,
    MixesChannels,
    MixesPositions,
    Noisy,
    NotFinite,
    OnlyOnce,
    Refuses,
    ScalesOnly,
    ShiftsOnly,
    SixPasses,
    SquaresInHalf,
    Standardized,
    SteepAtZero,
    SubtractsInHalf,
    TwiceInEvaluation,
    WrongTwice,
)

from normbench.capabilities import (
    Answer,
    Probe,
    batches,
    costs,
    invariances,
    numerics,
    parallel,
    tools,
    weights,
)

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
