"""What cells of a kind have cost: the source of every expected duration."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator

from normbench.cells import Cell, digest

Key = tuple[object, ...]


class Costs:
    """Wall seconds of finished cells, by how much like the one in question they are."""

    def __init__(self) -> None:
        self._seen: dict[Key, list[float]] = defaultdict(list)
        self._all: list[float] = []

    def observe(self, cell: Cell, seconds: float) -> None:
        """Remember what a cell took."""
        for key in _kinds(cell):
            self._seen[key].append(seconds)
        self._all.append(seconds)

    def expect(self, cell: Cell) -> float | None:
        """Median of the most similar cells seen; None if there was none of its kind.

        Similar means the same task, model, data, batch size and configuration, with the same
        variant if possible.
        """
        for key in _kinds(cell):
            if key in self._seen:
                return statistics.median(self._seen[key])
        return None

    def total(self, cells: Iterable[tuple[Cell, float]], workers: int) -> float | None:
        """Seconds until all these cells are done, or None if no cell was ever seen.

        A cell of an unknown kind counts as the mean of all seen.

        Args:
            cells: each with the fraction of it that is left.
            workers: how many run at a time.
        """
        if not self._all:
            return None
        mean = statistics.fmean(self._all)
        parts = [
            left * (mean if (known := self.expect(cell)) is None else known) for cell, left in cells
        ]
        # Whatever the number of workers, no run is shorter than its longest cell.
        return max([sum(parts) / max(workers, 1), *parts], default=0.0)


def _kinds(cell: Cell) -> Iterator[Key]:
    """From the narrowest kind to the widest."""
    work = (cell.task, cell.model, cell.dataset, cell.batch_size, cell.precision)
    settings = digest([cell.config, cell.dataset_args, cell.model_args])
    yield (*work, settings, cell.variant)
    yield (*work, settings)
