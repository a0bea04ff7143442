"""A training loop that does what the cell says and nothing else.

Optimizer, learning-rate schedule and loop for the tasks that train. The loop does no logging and
no synchronization with the device but at its checkpoints, so that what it times is the method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench.data import Split

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECK_EVERY = 50
"""Steps between looks at the loss for divergence: each look synchronizes with the device."""


class Diverged(Exception):
    """The training loss is no longer finite."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a training shares with its evaluations, and what pairs it with others.

    Attributes:
        batch_size: samples in one forward pass.
        seed: of the data order.
        precision: `fp32`, `tf32`, `bf16` or `fp16`.
        device: where.
    """

    batch_size: int
    seed: int
    precision: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast of the precision; nothing for fp32 and tf32."""
        if self.precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the training stands: given to the caller at evaluation points.

    Attributes:
        step: optimizer steps done.
        samples: training samples seen.
        train_loss: mean training loss since the last checkpoint.
        lr: learning rate of the last step.
        seconds: spent in training so far, without evaluation.
    """

    step: int
    samples: int
    train_loss: float
    lr: float
    seconds: float


def total_steps(config: Mapping[str, Any], batch_size: int, train_samples: int) -> int:
    """Optimizer steps of a training: the budget in samples or epochs, at least `min_steps`."""
    samples = config["samples"] or config["epochs"] * train_samples
    fill: int = math.ceil(samples / (batch_size * config["accumulate"]))
    return max(int(config["min_steps"]), fill)


def peak_lr(config: Mapping[str, Any], batch_size: int) -> float:
    """The base rate scaled from the reference batch to this one (Goyal et al., 1706.02677)."""
    ratio = float(batch_size * config["accumulate"] / config["lr_reference_batch"])
    power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[config["lr_scaling"]]
    return float(float(config["lr"]) * ratio**power)


def learning_rate(config: Mapping[str, Any], peak: float, step: int, steps: int) -> float:
    """Linear warm-up, then constant or half a cosine down to 0 (Loshchilov, 1608.03983)."""
    warmup = round(float(config["warmup_fraction"]) * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if config["schedule"] == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_for(model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The cell's optimizer; weight decay leaves out 1-D parameters (norms, biases).

    A module may ask for decay on 1-D parameters of its own by naming them in a class attribute
    `decayed_parameters`, as ProxyNorm does.
    """
    asked = {
        id(getattr(module, name))
        for module in model.modules()
        for name in getattr(module, "decayed_parameters", ())
    }
    decay: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            chosen = decay if parameter.ndim > 1 or id(parameter) in asked else exempt
            chosen.append(parameter)
    groups = [
        {"params": params, "weight_decay": weight_decay}
        for params, weight_decay in ((decay, config["weight_decay"]), (exempt, 0.0))
        if params
    ]
    if config["optimizer"] == "sgd":
        momentum, nesterov = config["momentum"], config["nesterov"]
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)
    if config["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    raise ValueError(f"unknown optimizer {config['optimizer']!r}; valid: adamw, sgd")


def micro_batches(split: Split, at: Conditions) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end, shuffled anew each epoch."""
    epoch = 0
    while True:
        yield from split.batches(
            at.batch_size, seed=at.seed, epoch=epoch, device=at.device, drop_last=True
        )
        epoch += 1


def train(
    model: nn.Module,
    split: Split,
    config: Mapping[str, Any],
    at: Conditions,
    *,
    steps: int,
    checkpoints: set[int],
    on_checkpoint: Callable[[Checkpoint], None],
    progress: Callable[[float], None],
) -> None:
    """Train in place for `steps` optimizer steps; `progress` takes the fraction done.

    Raises:
        Diverged: when the training loss is not finite.
    """
    optimizer = optimizer_for(model, config)
    step_once = _stepper(model, optimizer, micro_batches(split, at), config, at)
    peak, accumulate = peak_lr(config, at.batch_size), config["accumulate"]
    loss_sum, since, seconds = torch.zeros((), device=at.device), 0, 0.0
    model.train()
    began = time.perf_counter()
    for step in range(1, steps + 1):
        lr = learning_rate(config, peak, step - 1, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        step_once(loss_sum)
        since += accumulate
        if step % CHECK_EVERY == 0 or step in checkpoints or step == steps:
            mean_loss = float(loss_sum) / since
            if not math.isfinite(mean_loss):
                raise Diverged(f"the training loss is {mean_loss} by step {step} of {steps}")
            progress(step / steps)
            if step in checkpoints:
                seconds += time.perf_counter() - began
                seen = step * accumulate * at.batch_size
                on_checkpoint(Checkpoint(step, seen, mean_loss, lr, seconds))
                model.train()
                loss_sum.zero_()
                since, began = 0, time.perf_counter()


def _stepper(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    config: Mapping[str, Any],
    at: Conditions,
) -> Callable[[Tensor], None]:
    """A function that takes one optimizer step and adds its losses to the tensor it is given."""
    scaler = torch.amp.GradScaler(at.device.type, enabled=at.precision == "fp16")
    accumulate, clip = config["accumulate"], config["clip_grad_norm"]
    smoothing, cast = config["label_smoothing"], at.autocast()

    def step_once(loss_sum: Tensor) -> None:
        for _ in range(accumulate):
            images, labels = next(batches)
            with cast:
                loss = F.cross_entropy(model(images).float(), labels, label_smoothing=smoothing)
            scaler.scale(loss / accumulate if accumulate > 1 else loss).backward()
            loss_sum += loss.detach()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step_once


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, at: Conditions, *, eval_batch_size: int
) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy over a whole split, in evaluation mode."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=at.device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=at.device)
    for images, labels in split.ordered(eval_batch_size, device=at.device):
        with at.autocast():
            logits = model(images)
        logits = logits.float()
        correct += (logits.argmax(1) == labels).sum()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").double()
    return correct.item() / len(split), loss_sum.item() / len(split)
