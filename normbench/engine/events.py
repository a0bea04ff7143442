"""What a run tells whoever watches it: plain values, in the order in which things happen.

`done` and `total` count all cells asked for, those finished in earlier runs included, so that
`done == total` means that nothing is left. Times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from normbench.cells import Cell, Record


@dataclass(frozen=True, slots=True)
class Planned:
    """The first event: what is asked for, what of it exists, what will run and where.

    Attributes:
        total: cells asked for, after filters, equal ones counted once.
        skipped: cells with a record from this hardware class.
        to_run: `total - skipped`.
        expected_seconds: from records of like cells; None where there are none for any cell.
        workers: worker processes; 0 means in this process.
        device: `cpu` or `cuda`.
        borrowed: the expectation comes, at least in part, from records of other hardware.
        problems: damaged record files, which are left where they are, and data that changed
            under finished cells; one sentence each.
    """

    total: int
    skipped: int
    to_run: int
    expected_seconds: float | None
    workers: int
    device: str
    borrowed: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A cell began on a worker, numbered from 0."""

    cell: Cell
    worker: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A running cell got further; `fraction` is 0 to 1."""

    cell: Cell
    fraction: float
    worker: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell ended, in whatever status, and its record is safely on disk.

    Attributes:
        eta_seconds: until the whole run ends; None while nothing is known.
        elapsed_seconds: since the run began.
    """

    record: Record
    done: int
    total: int
    eta_seconds: float | None
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Ctrl-C: workers are stopped, finished records kept, `in_flight` cells lost."""

    done: int
    total: int
    in_flight: int


Event = Planned | Started | Progress | Finished | Interrupted
