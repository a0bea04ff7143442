"""Invented records of the tasks throughput, memory and layer. No number here was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from synthetic_records import METHODS, examinations, record, study

from normbench.cells import Record

THROUGHPUT: Mapping[str, Any] = {
    "mode": "train", "layout": "nchw", "image_size": 64, "compile": False, "threads": 2,
    "timeout_seconds": 600,
}  # fmt: skip
MEMORY: Mapping[str, Any] = {
    "layout": "nchw", "image_size": 64, "budgets_gib": [1, 4], "threads": 2,
    "timeout_seconds": 600,
}  # fmt: skip
LAYER: Mapping[str, Any] = {
    "part": "both", "channels": 64, "height": 32, "width": 32, "layout": "nchw", "threads": 2,
    "activation": "relu", "processes": 1, "timeout_seconds": 600,
}  # fmt: skip
CUDA = "cuda: invented"
FAILED_METRICS = {"min_values_per_channel": 8.0}


def throughput(ratio: float = 1.2, half: float | None = 0.02, **fields: Any) -> Record:
    """One record; `half` is half the interval's width, None for too few rounds to have one."""
    batch = fields.get("batch_size", 32)
    base = 1e-3 * batch
    metrics = {
        **_times(base * ratio), **_times(base, "reference_"), **_ratio(ratio, half),
        "rounds": 25.0 if half else 4.0, "images_per_second": batch / (base * ratio),
        "warm_up_runs": 3.0, "drift": 1.01, "norm_share": max(0.02, 1 - 0.8 / ratio),
        "reference_norm_share": 0.2, "norm_elements": 1e4 * batch, "norm_pass_bytes": 4e4 * batch,
        "parameters": 11e6, "min_values_per_channel": 4.0 * batch,
    }  # fmt: skip
    config = fields.get("config", THROUGHPUT)
    if config["mode"] == "inference_folded":
        metrics |= {"folded": 20.0, "not_folded": 1.0}
    if config["compile"]:
        metrics |= {"compile_seconds": 12.0}
    if fields.get("hardware_class") == CUDA:
        metrics |= {
            "graph_seconds": base * ratio / 2, "graph_reference_seconds": base / 2,
            **_ratio(ratio**0.5, half, "graph_"), "energy_joules": 300 * base * ratio,
            "reference_energy_joules": 300 * base, "power_watts": 300.0, "sm_clock_hz": 1.7e9,
            "throttled": 0.0,
        }  # fmt: skip
    return _cost("throughput", metrics, THROUGHPUT, fields)


def memory(ratio: float = 1.1, **fields: Any) -> Record:
    """One record; `ratio` is of the bytes kept for the backward."""
    batch, peak = fields.get("batch_size", 32), 1 + (ratio - 1) / 2
    saved = 1e6 * batch
    metrics = {
        "saved_bytes": saved * ratio, "reference_saved_bytes": saved, "saved_ratio": ratio,
        "norm_saved_bytes": saved * (ratio - 0.6), "reference_norm_saved_bytes": saved * 0.4,
        "parameters": 11e6, "parameter_bytes": 44e6, "buffer_bytes": 4e4,
        "norm_parameters": 9600.0, "norm_buffers": 9620.0,
        "reference_parameters": 11e6, "reference_parameter_bytes": 44e6,
        "reference_buffer_bytes": 4e4, "reference_norm_parameters": 9600.0,
        "reference_norm_buffers": 9620.0,
        "peak_allocated_bytes": (9e7 + 2e6 * batch) * peak,
        "reference_peak_allocated_bytes": 9e7 + 2e6 * batch, "peak_ratio": peak,
        "fixed_bytes": 9e7, "bytes_per_sample": 2e6 * peak,
        "reference_fixed_bytes": 9e7, "reference_bytes_per_sample": 2e6,
        "norm_elements": 1e4 * batch, "norm_pass_bytes": 4e4 * batch,
        "min_values_per_channel": 4.0 * batch,
    }  # fmt: skip
    for gib in (1, 4):
        for name, grow in (("", peak), ("reference_", 1.0)):
            fits = float((gib * 2**30 - 9e7) // (2e6 * grow))
            metrics[f"{name}predicted_largest_batch_{gib}gib"] = fits
            if fields.get("hardware_class") == CUDA:
                metrics[f"{name}largest_batch_{gib}gib"] = fits - 3
    made = _cost("memory", metrics, MEMORY, fields)
    costs = [{"slot": "bn1", "elements": 1000, "saved_bytes": 4000}]
    return replace(made, slots={**made.slots, "costs": costs})


def layer(ratio: float = 1.3, half: float | None = 0.05, **fields: Any) -> Record:
    """One record of a layer alone."""
    base = 1e-4 * fields.get("batch_size", 32)
    metrics = {
        **_times(base * ratio), **_times(base, "reference_"), **_ratio(ratio, half), "rounds": 25.0
    }  # fmt: skip
    return _cost("layer", metrics, LAYER, {"model": "layer", **fields})


def costs(variants: Iterable[str] = METHODS) -> list[Record]:
    """Speed and memory of the invented methods: two machines, two batch sizes, failures."""
    made = []
    for place, variant in enumerate(variants):
        method, _, params = METHODS.get(variant, (variant.partition("(")[0], "", {}))
        who = {"method": method, "variant": variant, "params": params, "suite": "costs"}
        # The first, batch_norm, is the null test; each third is as fast as it.
        ratio = 1.0 + 0.13 * (place % 3) * (1 + place / 6) + 0.004 * (place % 2)
        for batch in (2, 32):
            who |= {"batch_size": batch}
            for hardware in ("cpu-invented", CUDA):
                at = {**who, "hardware_class": hardware, "model": "resnet18"}
                if variant == "layer_norm_chw" and hardware == CUDA and batch == 32:
                    reason = "out of memory at batch size 32 of <images>"
                    made.append(throughput(status="oom", reason=reason, **at))
                else:
                    made.append(throughput(ratio + batch / 1000, **at))
                folded = {**THROUGHPUT, "mode": "inference_folded"}
                made.append(throughput(ratio + 0.3, None, **{**at, "config": folded}))
            kept = 1.0 if method == "batch_norm" else 0.9 + 0.08 * place
            made.append(memory(kept, model="nb_resnet10_1x1", **who))
            made.append(memory(kept, model="nb_resnet10_1x1", hardware_class=CUDA, **who))
            made += [layer(ratio, **who), layer(ratio, config={**LAYER, "height": 8}, **who)]
    return made


def everything() -> list[Record]:
    """The suite, the examinations and the costs."""
    return [*study(), *examinations(), *costs()]


def _cost(
    task: str, metrics: Mapping[str, float], config: Mapping[str, Any], fields: Mapping[str, Any]
) -> Record:
    """As the contract has it: no data set; a record that failed keeps little."""
    cell = {
        "model": "resnet18", "batch_size": 32, "dataset": "none", "dataset_args": {},
        "data_fingerprint": "", "suite": "costs", "config": dict(config),
    }  # fmt: skip
    made = record(task=task, accuracy=None, **{**cell, **fields})
    kept = dict(metrics) if made.status == "ok" else FAILED_METRICS
    if task == "memory" or made.status != "ok":
        return replace(made, metrics=kept)
    samples = tuple(metrics["seconds"] * (1 + 0.01 * (i % 3 - 1)) for i in range(9))
    trials = (
        _trial("ours", metrics["seconds"], samples),
        _trial("batch_norm", metrics["reference_seconds"], samples),
    )
    return replace(made, metrics=kept, samples=samples, trials=trials)


def _trial(name: str, seconds: float, samples: tuple[float, ...]) -> dict[str, Any]:
    return {
        "config": {"contestant": name}, "status": "ok", "reason": "",
        "metrics": {"seconds": seconds}, "samples": {"launched": list(samples)},
    }  # fmt: skip


def _times(seconds: float, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}seconds": seconds, f"{prefix}p20_seconds": seconds * 0.98,
        f"{prefix}p80_seconds": seconds * 1.04,
    }  # fmt: skip


def _ratio(ratio: float, half: float | None, prefix: str = "") -> dict[str, float]:
    found = {f"{prefix}ratio": ratio}
    if half is not None:
        found |= {f"{prefix}ratio_low": ratio - half, f"{prefix}ratio_high": ratio + half}
    return found
