"""What a method can do, measured: one small function per question, by theme.

`examine` puts every probe to a method. A probe that crashes becomes an entry that says so.
"""

from __future__ import annotations

from collections.abc import Callable

from normbench.capabilities import (
    batches,
    costs,
    flops,
    invariances,
    numerics,
    parallel,
    tools,
    weights,
)
from normbench.capabilities.probe import ALONE, Answer, Probe, ask, numbers
from normbench.capabilities.subject import SETTINGS, Subject

__all__ = ["ALONE", "SETTINGS", "THEMES", "Answer", "Probe", "Subject", "examine", "numbers"]

THEMES: dict[str, tuple[Probe, ...]] = {
    "Batch": (
        batches.batch_independent, batches.batch_of_one, batches.one_value_per_channel,
        batches.train_eval_gap, batches.channel_mean, batches.channel_variance,
    ),
    "Invariance": (
        invariances.input_scale_invariant, invariances.channel_scale_invariant,
        invariances.input_shift_invariant, invariances.channel_shift_invariant,
        invariances.weight_scale_invariant,
    ),
    "Numerics": (
        numerics.keeps_channels_last, numerics.autocast_bf16_finite,
        numerics.autocast_fp16_finite, numerics.autocast_bf16_error, numerics.autocast_fp16_error,
        numerics.double_backward, numerics.deterministic,
    ),
    "Deployment": (
        tools.compiles, tools.exports, tools.onnx_agrees, parallel.ddp_averages,
        weights.loads_batch_norm_keys, weights.carries_pretrained, weights.folds_into_convolution,
    ),
    "Cost": (
        costs.saved_bytes, costs.parameters_per_channel, costs.buffers_per_channel,
        flops.flops_per_element, costs.passes_forward, costs.passes_backward, costs.time_ratio,
    ),
}  # fmt: skip
"""All probes, in the order that tables have."""


def examine(subject: Subject, progress: Callable[[float], None]) -> dict[str, Answer]:
    """Every probe's answers by entry name; `progress` takes the fraction done."""
    probes = [asked for theme in THEMES.values() for asked in theme]
    entries: dict[str, Answer] = {}
    for done, asked in enumerate(probes):
        progress(done / len(probes))
        entries |= ask(asked, subject)
    return entries
