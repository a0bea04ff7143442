"""Which cells a run will run: expand, filter, drop what is finished, estimate the rest."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from normbench import registry, tasks
from normbench.cells import Cell, Record
from normbench.engine.changes import changed_data
from normbench.engine.costs import Costs
from normbench.engine.environment import hardware_class, resolve_device
from normbench.engine.execute import fallback, identify
from normbench.spool import FAILED
from normbench.timing.machine import available_cores, check_precision, check_threads

if TYPE_CHECKING:
    from normbench.suites import Suite

FILTER_KEYS = (
    "suite", "task", "method", "variant", "model", "dataset", "batch_size", "seed", "precision",
)  # fmt: skip
"""Fields of a cell that a filter can name."""

COST_ROWS = 5000
"""Most recent records that expected durations are taken from."""


class PlanError(ValueError):
    """A run that cannot begin: no cells, or a filter that fits none."""


@dataclass(frozen=True)
class RunPlan:
    """What a run is going to do.

    Attributes:
        to_run: cells without a record of these data from this hardware class, in suite order. One
            of the eager path counts only where the method would run that again.
        ids: their cell ids.
        seconds: what each of them is expected to take, None where nothing like it was measured.
        earlier: the records of the other cells.
        device: where cells run.
        workers: worker processes, 0 for none.
        costs: what like cells took.
        borrowed: expected durations come, at least in part, from other hardware.
        problems: damaged files in the results folder and data that changed, one sentence each.
    """

    to_run: tuple[Cell, ...]
    ids: tuple[str, ...]
    seconds: tuple[float | None, ...]
    earlier: tuple[Record, ...]
    device: torch.device
    workers: int
    costs: Costs
    borrowed: bool
    problems: tuple[str, ...]

    @property
    def skipped(self) -> int:
        """Cells that have a record already."""
        return len(self.earlier)

    @property
    def total(self) -> int:
        """All cells asked for."""
        return len(self.to_run) + self.skipped

    @property
    def expected_seconds(self) -> float | None:
        """Until the run ends; None if no cell of any kind asked for was ever measured."""
        if all(seconds is None for seconds in self.seconds) and self.to_run:
            return None
        return self.costs.total(((cell, 1.0) for cell in self.to_run), self.workers)


def plan(
    work: str | os.PathLike[str] | Suite | Sequence[Cell],
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    filters: Iterable[str] = (),
    retry_failed: bool = False,
    workers: int | None = None,
    elsewhere: Iterable[Record] = (),
) -> RunPlan:
    """Decide what to run; runs and writes nothing. Arguments as in `run`.

    Raises:
        ValueError: for a user's mistake (a suite that cannot be read, an unknown method, device
            or filter, no cells), with one clear sentence.
    """
    import polars as pl  # only where records are read: workers do without

    from normbench.store import Store, latest

    target = resolve_device(device)
    hardware = hardware_class(target)
    cells: dict[str, Cell] = {}
    for cell in select(cells_of(work, target), filters):
        cells.setdefault(identify(cell)[0], cell)
    check_machine(cells.values(), target, workers)
    store = Store(results_folder(out))
    everything = store.read()
    here = everything.filter(pl.col("hardware_class") == hardware)
    # A record of the eager path is finished work only where the kernels still cannot run.
    runs = [key for key, cell in cells.items() if not fallback(cell, target)]
    eager = (pl.col("fallback") != "") & pl.col("cell_id").is_in(runs)
    asked = here.filter(pl.col("cell_id").is_in(list(cells)) & ~eager)
    earlier = {
        record.cell_id: record
        for record in store.records(latest(asked))
        if not (retry_failed and record.status in FAILED)
    }
    changed, sentences = changed_data(earlier.values())
    earlier = {key: record for key, record in earlier.items() if key not in changed}
    others = everything.filter(pl.col("hardware_class") != hardware).tail(COST_ROWS)
    costs = _costs(
        store.records(here.tail(COST_ROWS)), [*elsewhere, *store.records(others)], target
    )
    ids = tuple(key for key in cells if key not in earlier)
    to_run = tuple(cells[key] for key in ids)
    return RunPlan(
        to_run=to_run,
        ids=ids,
        seconds=tuple(costs.expect(cell) for cell in to_run),
        earlier=tuple(earlier[key] for key in cells if key in earlier),
        device=target,
        workers=min(
            default_workers(target, to_run) if workers is None else workers, max(len(to_run), 1)
        ),
        costs=costs,
        borrowed=any(costs.expect(c) is not None and not costs.seen(c) for c in to_run),
        problems=(*store.problems, *sentences),
    )


def _costs(here: Iterable[Record], elsewhere: Iterable[Record], device: torch.device) -> Costs:
    """Durations of measured cells; those from elsewhere only if the device is of the same sort."""
    reference = Costs()
    for record in elsewhere:
        if record.measured and record.hardware_class.startswith(f"{device.type}:"):
            reference.observe(record.cell, record.wall_seconds)
    costs = Costs(reference)
    for record in here:
        if record.measured:
            costs.observe(record.cell, record.wall_seconds)
    return costs


def default_workers(device: torch.device, cells: Iterable[Cell] = ()) -> int:
    """One process per core on a CPU; one where cells share badly: a GPU, times, memory to the last.

    Cells that weigh memory may share a machine that has enough of it.
    """
    lonely = tasks.ALONE | {"memory"}
    if device.type == "cuda" or any(cell.task in lonely for cell in cells):
        return 1
    return available_cores()


def check_machine(cells: Iterable[Cell], device: torch.device, workers: int | None) -> None:
    """Refuse cells that this machine cannot measure as they ask to be.

    Raises:
        MachineError: for more threads than cores, or a precision that the device does not have.
        PlanError: for several workers while cells time.
    """
    for cell in cells:
        check_precision(cell.precision, device)
        check_threads(int(cell.config.get("threads", 1)))
        if cell.task in tasks.ALONE and (workers or 1) > 1:
            raise PlanError(
                f"cells of task {cell.task} time, and must run alone: {workers} workers would "
                "measure each other; leave --workers away"
            )


def results_folder(out: str | os.PathLike[str] | None = None) -> Path:
    """Where records are kept: as asked, else `NORMBENCH_RESULTS`, else `results`."""
    return Path(out or os.environ.get("NORMBENCH_RESULTS") or "results")


def cells_of(
    work: str | os.PathLike[str] | Suite | Sequence[Cell], device: torch.device | None = None
) -> list[Cell]:
    """The cells of a suite file, a suite, or cells themselves.

    Args:
        work: what to run.
        device: where; a suite may be for another.

    Raises:
        PlanError: if there are none, or the suite is not for this device.
        SuiteError: if the file is not a suite.
    """
    if isinstance(work, Sequence) and not isinstance(work, str):
        cells = list(work)
    else:
        from normbench.suites import expand, load_suite

        suite = load_suite(Path(work)) if isinstance(work, (str, os.PathLike)) else work
        wanted = getattr(suite, "device", "any")
        if device is not None and wanted not in ("any", device.type):
            here = "torch finds no CUDA device here" if wanted == "cuda" else "this is a CUDA run"
            raise PlanError(f"suite {suite.name} is for device {wanted}, but {here}")
        cells = expand(suite)
    if not cells:
        raise PlanError("there are no cells to run: the suite or list is empty")
    return cells


def select(cells: list[Cell], filters: Iterable[str]) -> list[Cell]:
    """The cells that pass every filter, in their order.

    A filter is `KEY=VALUE` or `KEY=VALUE,VALUE`; several of one key add up, several keys narrow.

    Raises:
        PlanError: for an unknown key, or a value that no cell has, with the nearest valid one.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise PlanError(f"filter {text!r} is not KEY=VALUE, such as method=batch_norm")
        if key not in FILTER_KEYS:
            raise PlanError(
                f"filter {text!r}: a cell has no {key!r}; {registry.nearest(key, FILTER_KEYS)}"
            )
        present = {str(getattr(cell, key)) for cell in cells}
        # A variant may contain commas itself: `group_norm(affine=False, groups=8)`.
        for choice in [value] if value in present else value.split(","):
            if choice not in present:
                raise PlanError(
                    f"filter {key}={choice} fits no cell; {registry.nearest(choice, present)}"
                )
            wanted[key].add(choice)
    chosen = [cell for cell in cells if _passes(cell, wanted)]
    if not chosen:
        raise PlanError("no cell passes all filters together")
    return chosen


def _passes(cell: Cell, wanted: Mapping[str, set[str]]) -> bool:
    return all(str(getattr(cell, key)) in values for key, values in wanted.items())
