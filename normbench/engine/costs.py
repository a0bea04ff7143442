"""What cells of a kind have cost: the source of every expected duration."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator

from normbench.cells import Cell, digest

Key = tuple[object, ...]


class Costs:
    """Wall seconds of finished cells, by how much like the one in question they are.

    Args:
        reference: what cells cost elsewhere. It stands in for kinds never seen here, multiplied
            by what this machine has shown to be slower or faster by.
    """

    def __init__(self, reference: Costs | None = None) -> None:
        self._seen: dict[Key, list[float]] = defaultdict(list)
        self._all: list[float] = []
        self._reference = reference
        self._ratios: list[float] = []

    def observe(self, cell: Cell, seconds: float) -> None:
        """Remember what a cell took."""
        for key in _kinds(cell):
            self._seen[key].append(seconds)
        self._all.append(seconds)
        elsewhere = self._reference.expect(cell) if self._reference else None
        if elsewhere:
            self._ratios.append(seconds / elsewhere)

    def seen(self, cell: Cell) -> bool:
        """Whether a cell of this kind was seen here, not only in the reference."""
        return any(key in self._seen for key in _kinds(cell))

    def expect(self, cell: Cell) -> float | None:
        """Median of the most similar cells seen; None if there was none of its kind anywhere.

        Similar means the same task, model, data, batch size and configuration, with the same
        variant if possible.
        """
        for key in _kinds(cell):
            if key in self._seen:
                return statistics.median(self._seen[key])
        elsewhere = self._reference.expect(cell) if self._reference else None
        if elsewhere is None:
            return None
        return elsewhere * (statistics.median(self._ratios) if self._ratios else 1.0)

    def total(self, cells: Iterable[tuple[Cell, float]], workers: int) -> float | None:
        """Seconds until all these cells are done, or None if nothing tells.

        A cell of an unknown kind counts as the mean of all seen here, else of the others.

        Args:
            cells: each with the fraction of it that is left.
            workers: how many run at a time.
        """
        parts = [(left, self.expect(cell)) for cell, left in cells]
        if not parts:
            return 0.0
        known = self._all or [seconds for _, seconds in parts if seconds is not None]
        if not known:
            return None
        mean = statistics.fmean(known)
        times = [left * (mean if seconds is None else seconds) for left, seconds in parts]
        # Whatever the number of workers, no run is shorter than its longest cell.
        return max([sum(times) / max(workers, 1), *times])


def _kinds(cell: Cell) -> Iterator[Key]:
    """From the narrowest kind to the widest."""
    work = (cell.task, cell.model, cell.dataset, cell.batch_size, cell.precision)
    settings = digest([cell.config, cell.dataset_args, cell.model_args])
    yield (*work, settings, cell.variant)
    yield (*work, settings)
