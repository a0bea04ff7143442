"""A timm model with a method in its slots beside the same model with batch norm, and their work."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normbench.networks  # noqa: F401  # registers our small networks into timm
from normbench import registry, surgery
from normbench.cells import Cell
from normbench.registry import TrainingPlan
from normbench.surgery.example import input_channels
from normbench.tasks.training import Conditions, optimizer_for
from normbench.timing.case import DTYPES, LAYOUTS
from normbench.timing.contestants import FULL, in_full_swing

REFERENCE = "batch_norm"
"""What everything is relative to: this method, with its defaults, in the slots of the model."""

MODES = {
    "train": "forward, loss, backward and step of SGD with momentum",
    "forward": "forward and loss in training mode, autograd recording",
    "inference": "forward in evaluation mode",
    "inference_folded": "the same, after every normalization that can be was folded",
}
"""What may be timed of a model."""

OPTIMIZER = {"optimizer": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4}


CONDITIONS = {"layout": tuple(LAYOUTS), "precision": (*DTYPES, "tf32")}
NUMBERS = ("batch_size", "image_size", "threads")
"""What cells of models may ask for, as `normbench.timing.options.check_options` takes it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be measured.

    Attributes:
        model: in the layout, mode and place that the cell asks for.
        report: of the swap.
        folded: normalizations folded away; None outside of that mode.
        unfolded: path and reason of those that stayed.
    """

    model: nn.Module
    report: surgery.SwapReport
    folded: int | None = None
    unfolded: tuple[tuple[str, str], ...] = ()


def base_model(cell: Cell, device: torch.device) -> nn.Module:
    """The model as timm builds it from the cell's seed, in the cell's layout; a copy of its own."""
    model = copy.deepcopy(_drawn(cell.model, json.dumps(dict(cell.model_args)), cell.seed))
    torch.manual_seed(cell.seed)  # for what comes next, whether the weights were drawn just now
    return model.to(device).to(memory_format=LAYOUTS[cell.config["layout"]]).train()


@functools.lru_cache(maxsize=1)
def _drawn(name: str, arguments: str, seed: int) -> nn.Module:
    """The model on the CPU. Kept, as cells of a model follow each other: drawing takes longest."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, pretrained=False, **json.loads(arguments))
    return model


def prepared(
    base: nn.Module, method: str, params: Mapping[str, Any], cell: Cell, device: torch.device
) -> Prepared:
    """A copy of the model with a method in its slots; equal weights of everything else.

    Args:
        base: as `base_model` gives it; left alone.
        method: catalogue name.
        params: resolved parameters.
        cell: mode, image size and layout.
        device: where the model is.

    Raises:
        SurgeryError: for a model without slots, or one that does not run at this size.
    """
    model = copy.deepcopy(base)
    info = registry.get(method)
    given = {k: v for k, v in params.items() if v != info.params[k].default}
    example = torch.randn(2, *image_shape(base, cell), device=device)
    report = surgery.swap(model, method, example_input=example, **given)
    if info.prepare is not None:
        info.prepare(model, TrainingPlan(total_steps=FULL))
    in_full_swing(model)
    mode = cell.config.get("mode", "train")
    if mode.startswith("inference"):
        _see_data(model, example)
    if mode != "inference_folded":
        return Prepared(model.train(not mode.startswith("inference")), report)
    fold = surgery.fold(model.eval(), example_input=example)
    return Prepared(model, report, len(fold.folded), fold.left)


@torch.no_grad()
def _see_data(model: nn.Module, images: Tensor) -> None:
    """Training forwards that move running statistics off where they begin.

    A whitening layer begins with the identity, which folds; after any training it does not.
    """
    model.train()
    for _ in range(2):
        model(images)


def image_shape(model: nn.Module, cell: Cell) -> tuple[int, int, int]:
    """C, H, W of the cell's images."""
    size = cell.config["image_size"]
    return input_channels(model), size, size


def slot_modules(ready: Prepared) -> dict[str, nn.Module]:
    """What stands in the slots, by path."""
    return {slot.name: ready.model.get_submodule(slot.name) for slot in ready.report.slots}


def slot_elements(report: surgery.SwapReport, cell: Cell) -> dict[str, int]:
    """Values of the activation at each slot, for the cell's batch."""
    return {
        slot.name: cell.batch_size * slot.num_features * slot.values_per_sample
        for slot in report.slots
    }


def norm_sizes(report: surgery.SwapReport, cell: Cell) -> dict[str, float]:
    """What can be counted of the slots without running anything.

    `norm_elements` values N·C·H·W of all slots, and `norm_pass_bytes`, what one reading or writing
    of them moves: batch norm that is fused as far as it can be makes three such passes forward in
    training, two in evaluation, none once it is folded.
    """
    elements = sum(slot_elements(report, cell).values())
    size = DTYPES.get(cell.precision, torch.float32).itemsize
    return {
        "norm_elements": elements,
        "norm_pass_bytes": elements * size,
        "min_values_per_channel": report.min_values_per_sample * cell.batch_size,
    }


class Work:
    """A model, a batch of random images, and what is done with them.

    The learning rate is 0: every step reads and writes what a step does, and leaves the weights
    where they are, so that the hundredth step is the same work as the first.
    """

    def __init__(self, model: nn.Module, cell: Cell, device: torch.device, batch: int = 0) -> None:
        """Draw the batch.

        Args:
            model: in the mode it is to be used in.
            cell: precision, layout, image size and mode.
            device: where.
            batch: samples, in place of the cell's.
        """
        batch = batch or cell.batch_size
        self.model, self.mode = model, cell.config.get("mode", "train")
        self.at = Conditions(batch, cell.seed, cell.precision, device)
        source = torch.Generator(device).manual_seed(cell.seed)  # the same for all contestants
        images = torch.randn(batch, *image_shape(model, cell), device=device, generator=source)
        self.images = images.to(memory_format=LAYOUTS[cell.config["layout"]])
        self.labels = torch.zeros(batch, dtype=torch.long, device=device)
        self.optimizer = optimizer_for(model, OPTIMIZER)
        self.scaler = torch.amp.GradScaler(device.type, enabled=cell.precision == "fp16")

    @property
    def run(self) -> Callable[[], None]:
        """The work of the cell's mode."""
        if self.mode == "train":
            return self.step
        return self.forward if self.mode == "forward" else self.infer

    def loss(self) -> Tensor:
        """Forward and cross-entropy."""
        with self.at.autocast():
            return F.cross_entropy(self.model(self.images).float(), self.labels)

    def forward(self) -> None:
        """Forward and loss, their graph dropped."""
        self.loss()

    def step(self) -> None:
        """Forward, backward and the optimizer's step; leaves no gradients."""
        self.scaler.scale(self.loss()).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> None:
        """Forward without autograd."""
        with torch.inference_mode(), self.at.autocast():
            self.model(self.images)
