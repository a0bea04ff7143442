"""Task `accuracy`: train a model with a variant in its slots, test it once at the end.

Protocol 1. The model is created from the cell's seed, the variant is put in afterwards (layers
draw no random numbers), data order comes from the same seed: so equal seeds give every method the
same initial weights of everything that is not a norm, and the same batches. Curves and tuning look
at the validation split; the test split is read once, after training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import nn

import normbench.networks  # noqa: F401  # registers our small networks into timm
from normbench import data, registry, surgery
from normbench.cells import Cell, Status
from normbench.recalibration import recalibrate, statistics_layers
from normbench.registry import TrainingPlan
from normbench.tasks.outcome import Outcome
from normbench.tasks.training import (
    Checkpoint,
    Conditions,
    Diverged,
    evaluate,
    micro_batches,
    total_steps,
    train,
)

PROTOCOL = 1

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class _Training:
    """One training run, the cell's own or a tuning trial."""

    cell: Cell
    config: Mapping[str, Any]
    dataset: data.Dataset
    device: torch.device

    @property
    def steps(self) -> int:
        return total_steps(self.config, self.cell.batch_size, len(self.dataset.train))


def run(cell: Cell, device: torch.device, progress: Progress) -> Outcome:
    """Measure one cell.

    Raises:
        ValueError: for a cell that cannot exist (batch larger than the data, a model without
            slots) or that the method refuses ("values per channel").
    """
    dataset = data.load(cell.dataset, device=device, **cell.dataset_args)
    final = _Training(cell, cell.config, dataset, device)
    trials: tuple[Mapping[str, Any], ...] = ()
    if cell.config["tune"]:
        trainings = list(_trials(final))
        budget = sum(t.steps for t in trainings) + final.steps
        trials, best = _tune(trainings, lambda f: progress(f * (1 - final.steps / budget)))
        if best is None:
            reason = f"all {len(trials)} tuning trials diverged"
            fingerprint = dataset.fingerprint
            return Outcome("diverged", reason, trials=trials, data_fingerprint=fingerprint)
        final = replace(final, config={**cell.config, **best})
        done = 1 - final.steps / budget
        return replace(_measure(final, lambda f: progress(done + f * (1 - done))), trials=trials)
    return _measure(final, progress)


def _trials(final: _Training) -> Iterator[_Training]:
    tune = final.config["tune"]
    keys = sorted(tune["grid"])
    for values in itertools.product(*(tune["grid"][key] for key in keys)):
        chosen = dict(zip(keys, values, strict=True))
        budget = {"samples": tune["samples"], "epochs": None, "evaluations": 1}
        yield replace(final, config={**final.config, **budget, **chosen})


def _tune(
    trainings: list[_Training], progress: Progress
) -> tuple[tuple[Mapping[str, Any], ...], dict[str, Any] | None]:
    """All trials, and the chosen configuration: best on validation, first of equals."""
    trials: list[Mapping[str, Any]] = []
    best: dict[str, Any] | None = None
    best_score = -math.inf
    for index, training in enumerate(trainings):
        tune = training.config["tune"]
        chosen = {key: training.config[key] for key in sorted(tune["grid"])}
        outcome = _measure(training, _part(progress, index, len(trainings)), test=False)
        trials.append(
            {"config": chosen, "status": outcome.status, "metrics": dict(outcome.metrics)}
        )
        score = outcome.metrics.get(tune["metric"], -math.inf)
        score = -score if tune["metric"].endswith("loss") else score
        if outcome.status == "ok" and score > best_score:
            best, best_score = chosen, score
    return tuple(trials), best


def _part(progress: Progress, index: int, count: int) -> Progress:
    """Progress of the part `index` of `count`, told as progress of the whole."""
    return lambda fraction: progress((index + fraction) / count)


def build_model(
    cell: Cell, dataset: data.Dataset, device: torch.device
) -> tuple[nn.Module, surgery.SwapReport]:
    """The cell's model with its variant in every slot, initialised from the cell's seed."""
    torch.manual_seed(cell.seed)
    model = timm.create_model(
        cell.model,
        pretrained=False,
        num_classes=dataset.num_classes,
        in_chans=dataset.channels,
        **cell.model_args,
    ).to(device)
    example = torch.zeros(2, dataset.channels, *dataset.image_size, device=device)
    info = registry.get(cell.method)
    given = {k: v for k, v in cell.params.items() if v != info.params[k].default}
    return model, surgery.swap(model, cell.method, example_input=example, **given)


def _measure(training: _Training, progress: Progress, *, test: bool = True) -> Outcome:
    cell, config, dataset, device = (
        training.cell, training.config, training.dataset, training.device,
    )  # fmt: skip
    model, report = build_model(cell, dataset, device)
    info, steps = registry.get(cell.method), training.steps
    if info.prepare is not None:
        info.prepare(model, TrainingPlan(total_steps=steps * config["accumulate"]))
    metrics: dict[str, float] = {
        "steps": steps,
        "samples_seen": steps * cell.batch_size * config["accumulate"],
        "min_values_per_channel": report.min_values_per_sample * cell.batch_size,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    curve: list[Mapping[str, float]] = []
    at = Conditions(cell.batch_size, cell.seed, cell.precision, device)
    size = config["eval_batch_size"]

    def on_checkpoint(reached: Checkpoint) -> None:
        accuracy, loss = evaluate(model, dataset.validation, at, eval_batch_size=size)
        curve.append(_point(reached, accuracy, loss, len(dataset.train)))

    torch.manual_seed(cell.seed + 1)  # dropout and the like: the same stream for every method
    status: Status = "ok"
    reason = ""
    try:
        train(
            model, dataset.train, config, at, steps=steps, progress=progress,
            checkpoints=_spread(steps, config["evaluations"]), on_checkpoint=on_checkpoint,
        )  # fmt: skip
    except Diverged as error:
        status, reason = "diverged", str(error)
    if curve:
        keys = ("train_loss", "validation_accuracy", "validation_loss", "train_seconds")
        metrics |= {key: curve[-1][key] for key in keys}
    if status == "ok" and test:
        accuracy, loss = evaluate(model, dataset.test, at, eval_batch_size=size)
        metrics |= {"test_accuracy": accuracy, "test_loss": loss}
        if not math.isfinite(loss):  # training was finite: the evaluation statistics are not
            status, reason = "diverged", f"the test loss is {loss}, while training was finite"
    recalibrated: list[str] = []
    if status == "ok" and test and config.get("recalibrate"):
        found, recalibrated = _recalibrated(model, dataset, config, at)
        metrics |= found
    if info.observe is not None:
        metrics |= info.observe(model)
    sizes = "/".join(str(len(s)) for s in (dataset.train, dataset.validation, dataset.test))
    notes = (f"data: {dataset.name}, {sizes} images",)
    return Outcome(
        status, reason, metrics, tuple(curve), slots=report.to_json(),
        notes=(*notes, *report.notes, *recalibrated), data_fingerprint=dataset.fingerprint,
    )  # fmt: skip


def _recalibrated(
    model: nn.Module, dataset: data.Dataset, config: Mapping[str, Any], at: Conditions
) -> tuple[dict[str, float], list[str]]:
    """Test metrics after precise batch norm over training batches; a note where nothing can be."""
    if not any(True for _ in statistics_layers(model)):
        return {}, ["there are no running statistics to recalibrate"]
    try:
        with at.autocast():
            done = recalibrate(
                model, micro_batches(dataset.train, at), at_most=config["recalibrate"]
            )
    except ValueError as refusal:  # layers whose statistics are not those of their input
        return {}, [f"not recalibrated: {refusal}"]
    accuracy, loss = evaluate(model, dataset.test, at, eval_batch_size=config["eval_batch_size"])
    return {
        "recalibrated_test_accuracy": accuracy,
        "recalibrated_test_loss": loss,
        "estimation_shift": done.mean_shift,
    }, []


def _spread(steps: int, count: int) -> set[int]:
    """`count` evaluation points spread evenly over the training, the last at its end."""
    return {round(steps * i / count) for i in range(1, count + 1)} - {0} | {steps}


def _point(at: Checkpoint, accuracy: float, loss: float, train_samples: int) -> dict[str, float]:
    return {
        "step": at.step,
        "samples": at.samples,
        "epoch": at.samples / train_samples,
        "lr": at.lr,
        "train_loss": at.train_loss,
        "train_seconds": at.seconds,
        "validation_accuracy": accuracy,
        "validation_loss": loss,
    }
