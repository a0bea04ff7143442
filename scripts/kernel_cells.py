"""The cells of `make gpu`'s stages kernel-bench and resnet50-step, the most telling first."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch

from normbench import registry
from normbench.cells import Cell
from normbench.surgery.slots import survey
from normbench.timing.contestants import FOREIGN

BATCHES = (32, 2, 256, 8, 128)
MAIN_PEERS = ("eager", "compiled", "eager_nchw", "eager_fp16")
FEW_PEERS = ("eager", "compiled")
GROUP_NORMS = (
    ("group_norm_triton", "nhwc"),
    ("group_norm_triton", "nchw"),
    ("layer_norm_chw_triton", "nhwc"),
)
MAIN_SHAPES = 6
"""Shapes followed by an activation that hold most of ResNet-50's elements."""

KERNEL_SECONDS, STEP_SECONDS, COMPILED_SECONDS = 150, 150, 330
"""Limits of a cell."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Slots of ResNet-50 that are alike: form (`normbench.timing`), channels, height, how many."""

    form: str
    channels: int
    size: int
    count: int

    @property
    def elements(self) -> int:
        """Values an image has in all of them."""
        return self.count * self.channels * self.size**2


def resnet50_slots() -> list[Slot]:
    """The 53 slots of timm's resnet50 at 224 px, like ones together, the largest share first."""
    found = survey(timm.create_model("resnet50"), torch.zeros(1, 3, 224, 224))
    kinds: Counter[tuple[str, int, int]] = Counter()
    for slot in found.slots:
        sighting = found.sightings[slot.name]
        form = "relu" if sighting.direct.activation else "none"
        form = "add_relu" if sighting.after_sum.activation else form
        kinds[form, slot.num_features, math.isqrt(slot.values_per_sample)] += 1
    slots = [Slot(*kind, count) for kind, count in kinds.items()]
    return sorted(slots, key=lambda slot: -slot.elements)


def kernel_cells() -> list[Cell]:
    """All cells of kernel-bench."""
    slots = resnet50_slots()
    main = [slot for slot in slots if slot.form != "none"][:MAIN_SHAPES]
    rest = [slot for slot in slots if slot not in main]
    cells = [*_batch_norm(main, BATCHES, MAIN_PEERS), *_batch_norm(rest, BATCHES, FEW_PEERS)]
    if "proxy_norm_triton" in registry.list_methods():
        for form, layout in (("relu", "nhwc"), ("silu", "nhwc"), ("relu", "nchw")):
            for slot in main:
                cell = kernel_cell("proxy_norm_triton", form, slot, 32, ("eager",), layout)
                cells.append(cell)
    for method, layout in GROUP_NORMS:
        cells += [kernel_cell(method, "relu", slot, 32, ("eager",), layout) for slot in main]
    cells += _batch_norm(main, (32, 256), FEW_PEERS, layout="nchw")
    cells += _batch_norm(main, (32, 256), FEW_PEERS, precision="fp16")
    for slot in main:
        peers = ("eager", "batch_norm")
        cells.append(kernel_cell("batch_renorm_triton", slot.form, slot, 32, peers))
    cells += _batch_norm(main, (32, 256), ("compiled_max",))
    cells += [kernel_cell("batch_norm_triton", "silu", slot, 32, FEW_PEERS) for slot in main]
    foreign = [peer for peer, home in FOREIGN.items() if _importable(home)]
    if foreign:
        cells += _batch_norm(main, BATCHES, foreign)
    for others in ({"layout": "nchw"}, {"precision": "fp16"}):
        cells += _batch_norm(main, (2, 8, 128), FEW_PEERS, **others)
    return [*cells, *_batch_norm(main, (32,), ("eager",), precision="fp32")]


def _batch_norm(
    slots: Sequence[Slot], batches: Sequence[int], peers: Iterable[str], **rest: str
) -> Iterator[Cell]:
    for batch in batches:
        for slot in slots:
            yield kernel_cell("batch_norm_triton", slot.form, slot, batch, peers, **rest)


def kernel_cell(
    method: str,
    form: str,
    slot: Slot,
    batch: int,
    peers: Iterable[str],
    layout: str = "nhwc",
    precision: str = "bf16",
) -> Cell:
    """A cell of task `kernel`."""
    config = {
        "form": form, "channels": slot.channels, "height": slot.size, "width": slot.size,
        "layout": layout, "peers": list(peers), "timeout_seconds": KERNEL_SECONDS,
    }  # fmt: skip
    return _cell("kernel", method, "layer", batch, precision, config)


def step_cells() -> list[Cell]:
    """All cells of resnet50-step."""
    timed = ["launched", "graph"]
    cells = [step_cell("resnet50", batch, ["eager"], timed) for batch in (32, 256)]
    cells.append(step_cell("efficientnet_b0", 32, ["eager"], []))
    cells += [step_cell("resnet50", batch, ["eager"], timed) for batch in (2, 128, 8)]
    cells.append(step_cell("efficientnet_b0", 128, ["eager"], timed))
    peers = ["compiled", "compiled_ours"]
    return [*cells, *(step_cell("resnet50", batch, peers, timed) for batch in (32, 256))]


def step_cell(model: str, batch: int, peers: list[str], modes: list[str]) -> Cell:
    """A cell of task `step`."""
    compiled = any(peer.startswith("compiled") for peer in peers)
    config = {
        "layout": "nhwc", "image_size": 224, "peers": peers, "modes": modes,
        "timeout_seconds": COMPILED_SECONDS if compiled else STEP_SECONDS,
    }  # fmt: skip
    return _cell("step", "batch_norm_triton", model, batch, "bf16", config)


def _cell(
    task: str, method: str, model: str, batch: int, precision: str, config: dict[str, Any]
) -> Cell:
    return Cell(
        suite="kernels", task=task, method=method, params=registry.resolve_params(method),
        variant=registry.variant(method), model=model, model_args={}, dataset="none",
        dataset_args={}, batch_size=batch, seed=0, precision=precision, config=config,
    )  # fmt: skip


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
