"""The tables of docs/performance.md from the records of tasks `kernel` and `step`.

    python scripts/kernel_table.py [gpu-records/spool]

Prints Markdown. What no record answers is shown as unmeasured.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from kernel_cells import BATCHES, Slot, resnet50_slots
from kernel_targets import Bench, Key, targets

from normbench import spool
from normbench.cells import Record
from normbench.engine.execute import identify
from normbench.timing.contestants import FOREIGN

GAP = "–"
RATIOS = (
    ("eager", "both"), ("compiled", "both"), ("compiled", "backward"), ("eager_nchw", "both"),
    ("eager_fp16", "both"),
)  # fmt: skip
COLUMNS = ("µs", "share of copy, fwd, bwd", "× eager", "× torch.compile", "× its backward",
           "× eager NCHW", "× eager fp16", "peak MB", "of eager", "launches")  # fmt: skip


def tables(records: Sequence[Record]) -> str:
    """Everything there is to show, as Markdown."""
    parts = []
    by_hardware: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.cell.task in ("kernel", "step"):
            by_hardware[record.hardware_class].append(record)
    for hardware, found in by_hardware.items():
        current = [record for record in found if identify(record.cell)[0] == record.cell_id]
        parts.append(f"### {hardware}")
        if older := len(found) - len(current):
            parts.append(f"{older} records of older code are left out.")
        slots, bench = resnet50_slots(), Bench(current)
        parts += [targets(bench, slots), _resnet50(bench, slots), _others(bench, slots)]
        parts += [_rare_peers(bench), _steps(bench), _failures(bench)]
    return "\n\n".join(filter(None, parts)) or "There are no records of kernels: unmeasured."


def _resnet50(bench: Bench, slots: Sequence[Slot]) -> str:
    """Every shape of ResNet-50 at every batch, bf16 channels last, CUDA graph."""
    title = (
        "Batch norm, forward and backward, bf16, channels last, CUDA graph over rotated buffers."
    )
    lines = [f"{title} × is a peer's time over ours.", "", _row("shape", "slots", *COLUMNS)]
    lines.append(_row(*["---"] * (2 + len(COLUMNS))))
    for batch in sorted(BATCHES):
        for slot in slots:
            key = Key("batch_norm_triton", slot.form, slot.channels, slot.size, batch)
            name = f"{batch}×{slot.channels}×{slot.size}² {slot.form}"
            lines.append(_row(name, str(slot.count), *_figures(bench, key)))
        lines.append(_row(f"**{batch}, all 53**", "53", *_sums(bench, slots, batch)))
    return "\n".join(lines)


def _figures(bench: Bench, key: Key) -> list[str]:
    def figure(name: str, form: Callable[[float], str] = "{:.2f}".format) -> str:
        value = bench.figure(key, name)
        return GAP if value is None else form(value)

    micro = figure("graph_both_seconds", lambda s: f"{s * 1e6:.1f}")
    if micro == GAP and (status := bench.status(key)):
        micro = status
    shares = [figure(f"graph_{part}_share_of_copy") for part in ("forward", "backward")]
    ratios = [figure(f"{peer}_graph_{part}_ratio") for peer, part in RATIOS]
    peak = figure("peak_memory_bytes", lambda b: f"{b / 1e6:.1f}")
    of_eager = figure("eager_peak_memory_ratio", lambda r: f"{1 / r:.2f}")
    launches = [
        figure(f"{part}_launches", lambda n: f"{n:.0f}") for part in ("forward", "backward")
    ]
    return [micro, ", ".join(shares), *ratios, peak, of_eager, " + ".join(launches)]


def _sums(bench: Bench, slots: Sequence[Slot], batch: int) -> list[str]:
    """Sums of ResNet-50's slots; a ratio only where both sums are complete."""
    whole = bench.network(slots, batch, "both")
    pairs = [bench.network(slots, batch, part, peer) for peer, part in RATIOS]
    ratios = [GAP if pair is None else f"{pair[1] / pair[0]:.2f}" for pair in pairs]
    micro = "unmeasured" if whole is None else f"{whole[0] * 1e6:.1f}"
    return [micro, GAP, *ratios, GAP, GAP, GAP]


def _others(bench: Bench, slots: Sequence[Slot]) -> str:
    """Every other case that was measured."""
    shown = {(s.form, s.channels, s.size) for s in slots}
    lines = []
    for key in sorted(bench.cases()):
        usual = key.method == "batch_norm_triton" and (key.layout, key.precision) == (
            "nhwc",
            "bf16",
        )
        if usual and (key.form, key.channels, key.size) in shown:
            continue
        name = f"{key.method.removesuffix('_triton')} {key.form}, {key.precision}, {key.layout}"
        shape = f"{key.batch}×{key.channels}×{key.size}²"
        lines.append(_row(f"{name}, {shape}", *_figures(bench, key)))
    if not lines:
        return "Other layers, layouts and types: unmeasured."
    head = [_row("case", *COLUMNS), _row(*["---"] * (1 + len(COLUMNS)))]
    return "\n".join(["Other layers, layouts and types, as above.", "", *head, *lines])


def _rare_peers(bench: Bench) -> str:
    """Peers that only some cases have."""
    lines = []
    for peer in ("compiled_max", *FOREIGN):
        name = f"{peer}_graph_both_ratio"
        found = [(key, bench.figure(key, name)) for key in sorted(bench.cases())]
        said = [
            f"{key.batch}×{key.channels}×{key.size}² {key.form} {ratio:.2f}"
            for key, ratio in found
            if ratio is not None
        ]
        lines.append(f"- {peer}: {'; '.join(said) or 'unmeasured'}")
    return "\n".join(["× of other peers, forward and backward in a CUDA graph:", "", *lines])


def _steps(bench: Bench) -> str:
    """Training steps: time, peak and saved memory, against the untouched model."""
    if not bench.steps:
        return "Training steps: unmeasured."
    head = ("model", "batch", "ms", "× eager", "graph ms", "× eager graph", "× compiled graph",
            "peak GB", "of eager", "saved GB", "of eager")  # fmt: skip
    lines = [
        "Training steps, bf16 autocast, channels last; eager is the model as timm builds it.",
        "",
    ]
    lines += [_row(*head), _row(*["---"] * len(head))]
    return "\n".join([*lines, *(_step(bench, *at) for at in sorted(bench.steps))])


def _step(bench: Bench, model: str, batch: int) -> str:
    def figure(name: str, scale: float = 1.0) -> str:
        value = bench.step(model, batch, name)
        return GAP if value is None else f"{value * scale:.4g}"

    def share(name: str) -> str:
        value = bench.step(model, batch, name)
        return GAP if value is None else f"{1 / value:.3f}"

    return _row(
        model, str(batch), figure("launched_step_seconds", 1e3),
        figure("eager_launched_step_ratio"), figure("graph_step_seconds", 1e3),
        figure("eager_graph_step_ratio"), figure("compiled_graph_step_ratio"),
        figure("peak_memory_bytes", 1e-9), share("eager_peak_memory_ratio"),
        figure("saved_bytes", 1e-9), share("eager_saved_ratio"),
    )  # fmt: skip


def _failures(bench: Bench) -> str:
    """What did not work, of ours and of peers, with its reason."""
    said = [f"- {what}: {reason}" for what, reason in bench.failures()]
    return "\n".join(["Not measured:", "", *said]) if said else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def read(folder: Path) -> list[Record]:
    """The records of a spool; damaged files are named."""
    records, problems = spool.read(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    return records


if __name__ == "__main__":
    print(tables(read(Path(sys.argv[1] if len(sys.argv) > 1 else "gpu-records/spool"))))
