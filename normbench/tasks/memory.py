"""Task `memory`: what a training step takes with a method, against the same model with batch norm.

Protocol 2. Each model is measured alone. Counted: parameters and buffers, the bytes that autograd
keeps for the backward, in all and by slot, each storage once. Measured in passes of their own: the
most memory of a step, weights, gradients and the state of SGD with momentum included. The line
through the heights at the cell's batch, or 16 if that is more, and at twice that predicts the
largest batch within each budget; on CUDA real runs under a limit of the allocator search for it as
well. Ratios are the method's figure over the reference's: above 1 it takes more.

The cell's config: `layout`, `image_size`, `budgets_gib`, `threads` (of the CPU). The record's
`slots` have `costs`, one entry per slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normbench.cells import Cell
from normbench.surgery import SwapReport
from normbench.tasks.outcome import Outcome
from normbench.timing.machine import check_precision, check_threads, with_precision, within_memory
from normbench.timing.models import (
    CONDITIONS,
    NUMBERS,
    REFERENCE,
    Work,
    base_model,
    norm_sizes,
    prepared,
    slot_elements,
    slot_modules,
)
from normbench.timing.options import check_options
from normbench.timing.peaks import GIB, Line, Peak, fits_cuda, in_use, largest_batch, peak
from normbench.timing.saved import saved_bytes, total_bytes
from normbench.timing.stopwatch import as_users_run

PROTOCOL = 2

LINE_BATCH = 16
"""The least batch that a line goes through. At smaller ones the height is that of gradients and
optimizer, and hardly grows with the batch."""

OPTIONS = {**CONDITIONS, "mode": ("train",)}

RATIOS = {"saved_bytes": "saved_ratio", "peak_allocated_bytes": "peak_ratio"}

Progress = Callable[[float], None]


def run(cell: Cell, device: torch.device, progress: Progress) -> Outcome:
    """Measure one cell. A reference that fails leaves the method's own figures.

    Raises:
        OptionError: for a layout, size or precision that there is not.
        MachineError: for a precision or number of threads that this machine does not have.
        SurgeryError: for a model without slots, or one that does not run at this size.
    """
    check_options(cell, OPTIONS, NUMBERS)
    check_precision(cell.precision, device)
    check_threads(cell.config["threads"])
    # Not pinned: nothing is timed, and cells beside this one would be on the same cores.
    with within_memory(device), as_users_run(by_trial=False), with_precision(cell.precision):
        ours = Weighing(cell, device)
        slots = ours.weigh(cell.method, cell.params)
        progress(0.5)
        metrics, notes = dict(ours.metrics), list(ours.notes)
        reference = Weighing(cell, device)
        try:
            reference.weigh(REFERENCE, {})
        except Exception as error:
            words = " ".join(str(error).split())
            notes.append(f"no ratio: the reference failed: {type(error).__name__}: {words}")
        else:
            metrics |= {f"reference_{name}": value for name, value in reference.metrics.items()}
            metrics |= _ratios(metrics)
    metrics |= norm_sizes(ours.report, cell)
    return Outcome("ok", metrics=metrics, slots=slots, notes=(*notes, *ours.report.notes))


def _ratios(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        ratio: metrics[name] / metrics[f"reference_{name}"]
        for name, ratio in RATIOS.items()
        if metrics.get(f"reference_{name}")
    }


class Weighing:
    """One model, alone on the device, and what it takes."""

    report: SwapReport

    def __init__(self, cell: Cell, device: torch.device) -> None:
        self.cell, self.device = cell, device
        self.metrics: dict[str, float] = {}
        self.notes: list[str] = []

    def weigh(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Fill `metrics`; returns the report of the swap, with what each slot costs."""
        before = in_use(self.device)
        base = base_model(self.cell, self.device)
        ready = prepared(base, method, params, self.cell, self.device)
        del base
        self.report, modules = ready.report, slot_modules(ready)
        self._count(ready.model, list(modules.values()))
        work = Work(ready.model, self.cell, self.device)
        work.step()  # the optimizer makes its state, layers what they make at first use
        saved = saved_bytes(ready.model, work.loss, modules)
        self.metrics |= {
            "saved_bytes": saved.total,
            "norm_saved_bytes": sum(saved.by_slot.values()),
        }
        optimizer = work.optimizer
        del work  # its images are not part of another batch's height
        self._measure_peaks(ready.model, optimizer, before)
        elements = slot_elements(ready.report, self.cell)
        costs = [
            {"slot": name, "elements": elements[name], "saved_bytes": size}
            for name, size in saved.by_slot.items()
        ]
        return ready.report.to_json() | {"costs": costs}

    def _count(self, model: nn.Module, norms: Sequence[nn.Module]) -> None:
        self.metrics |= {
            "parameters": sum(p.numel() for p in model.parameters()),
            "parameter_bytes": total_bytes(model.parameters()),
            "buffer_bytes": total_bytes(model.buffers()),
            "norm_parameters": sum(p.numel() for norm in norms for p in norm.parameters()),
            "norm_buffers": sum(b.numel() for norm in norms for b in norm.buffers()),
        }

    def _measure_peaks(self, model: nn.Module, optimizer: Optimizer, before: Peak) -> None:
        batch = self.cell.batch_size
        here = self.height(model, optimizer, batch, before)
        self.metrics["peak_allocated_bytes"] = here.allocated
        if self.device.type == "cuda":
            self.metrics["peak_reserved_bytes"] = here.reserved
        try:
            first = max(batch, LINE_BATCH)
            once = here if first == batch else self.height(model, optimizer, first, before)
            twice = self.height(model, optimizer, 2 * first, before)
            line = Line.through(first, once.allocated, 2 * first, twice.allocated)
            self.metrics |= {"fixed_bytes": line.fixed, "bytes_per_sample": line.per_sample}
            for budget in self.cell.config["budgets_gib"]:
                guess = line.largest(budget * GIB)
                self.metrics[f"predicted_largest_batch_{budget:g}gib"] = guess
                if self.device.type == "cuda":
                    self._search(model, optimizer, budget, max(1, guess))
        except Exception as error:  # what was counted and measured at the batch asked for stays
            words = " ".join(str(error).split())
            self.notes.append(f"no largest batch: {type(error).__name__}: {words}")

    def _search(self, model: nn.Module, optimizer: Optimizer, budget: float, guess: int) -> None:
        held = torch.cuda.memory_reserved(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + held
        if budget * GIB > free:
            self.notes.append(f"a budget of {budget:g} GiB is more than is free on the device")
            return

        def step(batch: int) -> None:
            try:
                self._work(model, optimizer, batch).step()
            finally:  # or the gradients of a step that failed would be there in the next
                optimizer.zero_grad(set_to_none=True)

        fits = fits_cuda(step, budget * GIB, self.device)
        self.metrics[f"largest_batch_{budget:g}gib"] = largest_batch(fits, guess)

    def _work(self, model: nn.Module, optimizer: Optimizer, batch: int) -> Work:
        work = Work(model, self.cell, self.device, batch)
        work.optimizer = optimizer
        return work

    def height(self, model: nn.Module, optimizer: Optimizer, batch: int, before: Peak) -> Peak:
        """The height of a step, weights and all; of this batch alone."""
        work = self._work(model, optimizer, batch)
        work.step()
        if self.device.type == "cuda":
            held = in_use(self.device)
            above = peak(work.step, self.device)
            return Peak(
                held.allocated - before.allocated + above.allocated,
                held.reserved - before.reserved + above.reserved,
            )
        state = (t for s in optimizer.state.values() for t in s.values())
        tensors = [*model.parameters(), *model.buffers(), work.images, work.labels]
        tensors += [t for t in state if isinstance(t, Tensor)]
        return Peak(total_bytes(tensors) + peak(work.step, self.device).allocated)
