"""Task `step`: a training step of a whole model with a method against the untouched model.

Protocol 1. Forward, cross-entropy loss, backward and SGD step on random images, under autocast of
the cell's precision, each contestant in turn: `launched` by Python and, on CUDA, replayed as a
CUDA `graph`. Beside the times: what autograd keeps for the backward (each storage once, parameters
and their casts left out), and the most memory a step takes beyond parameters and optimizer. A
ratio is the peer's figure over ours.

The cell's config: `layout`, `image_size`, `peers` (`PEERS`), `modes` (empty: memory alone).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import registry, surgery
from normbench.cells import Cell
from normbench.tasks.outcome import Outcome
from normbench.tasks.training import Conditions
from normbench.timing.case import LAYOUTS
from normbench.timing.contestants import OURS
from normbench.timing.entry import Entry, record_metrics
from normbench.timing.rounds import in_turns
from normbench.timing.saved import saved_bytes
from normbench.timing.stopwatch import Stopwatch, Timer, as_users_run, stopwatch

PROTOCOL = 1

PEERS = {
    "eager": "the model as timm builds it",
    "compiled": "torch.compile of it",
    "compiled_ours": "torch.compile of ours",
}
"""What a cell may name in `peers`."""

MODES = ("launched", "graph")
SECONDS, LEAST = 3.0, 10
"""Of the rounds of one mode."""


class _Training:
    """A model, its optimizer and a batch of random images."""

    def __init__(self, model: nn.Module, cell: Cell, device: torch.device) -> None:
        size = cell.config["image_size"]
        images = torch.randn(cell.batch_size, 3, size, size, device=device)
        self.images = images.to(memory_format=LAYOUTS[cell.config["layout"]])
        self.labels = torch.randint(0, 1000, (cell.batch_size,), device=device)
        self.model = model
        self.at = Conditions(cell.batch_size, cell.seed, cell.precision, device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def loss(self) -> Tensor:
        """Forward."""
        with self.at.autocast():
            return F.cross_entropy(self.model(self.images), self.labels)

    def step(self) -> None:
        """Forward, backward and the optimizer's step; leaves no gradients."""
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def saved_bytes(self) -> int:
        """What autograd keeps for the backward."""
        return saved_bytes(self.model, self.loss).total


def run(
    cell: Cell,
    device: torch.device,
    progress: Callable[[float], None],
    watch: Callable[[torch.device], Stopwatch] = stopwatch,
) -> Outcome:
    """Measure one cell. A peer that fails does not stop the others; our own failure does."""
    torch._dynamo.reset()  # what earlier cells compiled counts against dynamo's limits
    names, clock = [OURS, *cell.config["peers"]], watch(device)
    modes = [m for m in cell.config["modes"] if clock.graphs or m != "graph"]
    entries: dict[str, Entry] = {}
    trainings: dict[str, _Training] = {}
    with as_users_run(), clock.here():
        models, report = _models(cell, device)
        for done, name in enumerate(names):
            entries[name] = entry = Entry()
            try:
                trainings[name] = _prepared(name, models, cell, clock, entry)
            except Exception as error:
                if name == OURS:
                    raise
                entry.failed("not started", error)
            progress((done + 1) / (len(names) + len(modes)))
        for done, mode in enumerate(modes, len(names)):
            _take_turns(mode, trainings, entries, clock)
            progress((done + 1) / (len(names) + len(modes)))
    samples = entries[OURS].samples.get(f"{modes[-1]}_step", []) if modes else []
    trials = tuple(entry.trial(name) for name, entry in entries.items())
    metrics = record_metrics(entries, OURS)
    return Outcome(
        "ok", metrics=metrics, trials=trials, samples=tuple(samples),
        slots=report.to_json(), notes=tuple(report.notes),
    )  # fmt: skip


def _models(cell: Cell, device: torch.device) -> tuple[dict[str, nn.Module], surgery.SwapReport]:
    """`eager` and `ours`, from the same weights."""
    torch.manual_seed(cell.seed)
    model = timm.create_model(cell.model, pretrained=False, **cell.model_args)
    model = model.to(device).to(memory_format=LAYOUTS[cell.config["layout"]]).train()
    swapped = copy.deepcopy(model)
    size = cell.config["image_size"]
    info = registry.get(cell.method)
    given = {k: v for k, v in cell.params.items() if v != info.params[k].default}
    example = torch.zeros(2, 3, size, size, device=device)
    report = surgery.swap(swapped, cell.method, example_input=example, **given)
    return {"eager": model, OURS: swapped.train()}, report


def _prepared(
    name: str, models: dict[str, nn.Module], cell: Cell, clock: Stopwatch, entry: Entry
) -> _Training:
    """A contestant after its first steps, its memory measured."""
    model = models[OURS if name in (OURS, "compiled_ours") else "eager"]
    if name.startswith("compiled"):
        model = copy.deepcopy(model)
        model.compile()
    training = _Training(model, cell, clock.device)
    if not name.startswith("compiled"):  # what is compiled hides from the hooks
        entry.metrics["saved_bytes"] = training.saved_bytes()
    if peak := clock.peak_bytes(training.step):
        entry.metrics["peak_memory_bytes"] = peak
    return training


def _take_turns(
    mode: str, trainings: dict[str, _Training], entries: dict[str, Entry], clock: Stopwatch
) -> None:
    timers: dict[str, Timer] = {}
    for name, training in trainings.items():
        try:
            if mode == "graph":
                timers[name] = clock.replayed([training.step])
            else:
                timers[name] = clock.launched(training.step, clear=False)
        except Exception as error:
            if name == OURS:
                raise
            entries[name].failed(mode, error)
    for name, seconds in in_turns(timers, seconds=SECONDS, least=LEAST).items():
        entries[name].take(f"{mode}_step", seconds)
