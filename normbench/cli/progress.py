"""What a run shows while it works: which cells run, what is done, what is left, when it ends.

On a terminal a block that stays in place, with a line for each running cell; elsewhere (a log, a
pipe) one line for each finished cell. Everything goes to stderr: stdout is for results.
"""

from __future__ import annotations

import datetime
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from normbench.cells import Cell, Record
    from normbench.engine import events

TOLD_APART_BY = ("mode", "part", "layout", "channels", "height", "width")
"""Options by which cells of one task that measures a model several times differ."""


class Display(Protocol):
    """Takes the engine's events while the run goes on."""

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        ...

    def __enter__(self) -> Display:
        """Start showing."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        ...


def display() -> Display:
    """The display that fits stderr: in place on a terminal, line by line elsewhere."""
    return TerminalDisplay() if sys.stderr.isatty() else LineDisplay()


def label(cell: Cell) -> str:
    """One cell in a few words."""
    task = [] if cell.task in ("accuracy", cell.model) else [cell.task]
    options = [str(cell.config[name]) for name in TOLD_APART_BY if name in cell.config]
    where = [cell.variant, cell.model, *filter(None, [" ".join([*task, *options])])]
    return " · ".join([*where, f"batch {cell.batch_size}", f"seed {cell.seed}"])


def outcome(record: Record) -> str:
    """One finished record in a few words: its main figure, or what stopped it."""
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    from normbench.summary import figure

    return ", ".join(filter(None, ("ok", figure(record))))


def span(seconds: float) -> str:
    """Seconds as `45 s`, `3 min 20 s` or `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def left(seconds: float | None) -> str:
    """What is left and when that ends, on the local clock."""
    if seconds is None:
        return "time left not known yet"
    end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
    return f"{span(seconds)} left, ends about {end:%H:%M}"


def opening(
    total: int, skipped: int, expected_seconds: float | None, borrowed: bool = False
) -> str:
    """The first line of a run."""
    already = f", {skipped} already measured" if skipped else ""
    where = " by records made elsewhere" if borrowed else ""
    cost = f" (about {span(expected_seconds)}{where})" if expected_seconds else ""
    return f"{total} cells{already}, {total - skipped} to run{cost}"


class LineDisplay:
    """One line per finished cell, and a sign of life at least every half minute."""

    QUIET_SECONDS = 30.0

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._running: dict[int, str] = {}

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        from normbench.engine import events

        match event:
            case events.Planned(total=total, skipped=skipped, expected_seconds=expected):
                self._say(opening(total, skipped, expected, event.borrowed))
            case events.Finished(record=record, done=done, total=total, eta_seconds=eta):
                width = len(str(total))
                took = f"{record.wall_seconds:.1f} s"
                self._say(
                    f"[{done:{width}}/{total}] {label(record.cell)}: {outcome(record)} "
                    f"({took}; {left(eta)})"
                )
            case events.Progress(cell=cell, fraction=fraction):
                if time.monotonic() - self._said > self.QUIET_SECONDS:
                    self._say(f"    … {label(cell)}: {fraction:.0%}")
            case events.Interrupted():
                self._say("Interrupted: finished cells are kept; run the same command to go on.")


class TerminalDisplay:
    """A bar for the whole run, a line for each running cell, failures printed above."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
        )
        self._whole: TaskID | None = None
        self._cells: dict[str, Any] = {}

    def __enter__(self) -> TerminalDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        from normbench.engine import events

        match event:
            case events.Planned(total=total, skipped=skipped, expected_seconds=expected):
                self._print(opening(total, skipped, expected, event.borrowed))
                self._whole = self._progress.add_task(
                    "all cells", total=total, completed=skipped, note=left(expected)
                )
            case events.Started(cell=cell):
                name = label(cell)
                self._cells[name] = self._progress.add_task(f"  {name}", total=100, note="")
            case events.Progress(cell=cell, fraction=fraction) if label(cell) in self._cells:
                self._progress.update(self._cells[label(cell)], completed=int(100 * fraction))
            case events.Finished(record=record, done=done, eta_seconds=eta):
                name = label(record.cell)
                if name in self._cells:
                    self._progress.remove_task(self._cells.pop(name))
                if self._whole is not None:
                    self._progress.update(self._whole, completed=done, note=left(eta))
                self._print(f"{name}: {outcome(record)} ({record.wall_seconds:.1f} s)")
            case events.Interrupted():
                self._print("Interrupted: finished cells are kept; run the same command to go on.")
