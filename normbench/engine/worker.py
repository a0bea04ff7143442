"""The lean worker: `python -m normbench.engine.worker < cells.jsonl > records.jsonl`.

One cell per line in, one record per line out, in the same order. It needs torch, timm, numpy and
pyarrow, and nothing else. With `--spool DIR` records are files there instead, cells that have one
are skipped, and a run that was stopped continues where it was: what a GPU machine with a time
limit needs. `--retry-failed` runs those again whose records are errors and timeouts only, and with
`--supervised` a cell that crashes, hangs or breaks the device costs no other.

Exit codes: 0 all cells have a record; 2 bad input, nothing was run; 3 the deadline came first,
call again; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

import torch

from normbench import spool, tasks
from normbench.cells import Cell, CellError, Record, fell_back
from normbench.engine import environment
from normbench.engine.execute import fallback, identify
from normbench.engine.pool import run_inline, run_pool
from normbench.engine.serve import Setup

BAD_INPUT, DEADLINE, INTERRUPTED = 2, 3, 130


class InputError(ValueError):
    """A line that is not a cell."""


def read_cells(lines: Iterable[str]) -> list[Cell]:
    """The cells of JSON lines; empty lines do not count.

    Raises:
        InputError: naming the first line that is not a cell of a known method and task.
    """
    cells = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            cell = Cell.from_json(json.loads(line))
            identify(cell)
        except (CellError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"line {number} of the input is not a cell: {error}") from error
        cells.append(cell)
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = _parser().parse_args(arguments)
    results = _protect_stdout()
    try:
        device = environment.resolve_device(options.device)
        cells = read_cells(sys.stdin)
        keep: Callable[[Record], None]
        if options.spool is None:
            keep = lambda record: _print(record, results)  # noqa: E731
        else:
            folder: Path = options.spool
            spool.check_writable(folder)
            cells = _unfinished(cells, folder, device, retry_failed=options.retry_failed)
            keep = lambda record: _store(record, folder)  # noqa: E731
        return _work(cells, device, options, keep)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Interrupted: records so far are kept", file=sys.stderr)
        return INTERRUPTED


def _work(
    cells: Sequence[Cell],
    device: torch.device,
    options: argparse.Namespace,
    keep: Callable[[Record], None],
) -> int:
    began = time.monotonic()
    modules = sorted({tasks.TASKS[cell.task] for cell in cells})
    setup = Setup(device, options.threads, environment.submitter(), tuple(modules))
    if options.supervised:
        records = run_pool(cells, setup, 1, lambda event: None)
    else:
        records = run_inline(cells, setup, lambda event: None)
    told: set[str] = set()
    with contextlib.closing(records):
        for done in range(len(cells)):
            if time.monotonic() - began >= options.deadline:
                left = f"{len(cells) - done} of {len(cells)} cells left"
                print(f"Deadline: {left}; run again to continue", file=sys.stderr)
                return DEADLINE
            record = next(records)  # starts the cell, and no other
            keep(record)
            _tell(record, f"{done + 1}/{len(cells)}", told)
    return 0


def _tell(record: Record, count: str, told: set[str]) -> None:
    cell = record.cell
    what = f"{cell.variant}, {cell.model}, batch {cell.batch_size}, seed {cell.seed}"
    end = " ".join(filter(None, (record.status, record.reason)))
    print(f"[{count}] {what}: {end} ({record.wall_seconds:.1f} s)", file=sys.stderr)
    for sentence in {*fell_back([(cell.method, record.fallback)])} - told:
        print(f"Note: {sentence}", file=sys.stderr)
        told.add(sentence)


def _unfinished(
    cells: list[Cell], folder: Path, device: torch.device, *, retry_failed: bool
) -> list[Cell]:
    """The cells to run: new ones first, so that one that always fails holds up no other."""
    hardware = environment.hardware_class(device)
    records, problems = spool.read(folder)
    for problem in problems:
        print(f"Warning: {problem}", file=sys.stderr)
    # A record of the eager path is finished work only where the kernels still cannot run.
    runs = {identify(cell)[0] for cell in cells if not fallback(cell, device)}
    here = [
        record
        for record in records
        if record.hardware_class == hardware and not (record.fallback and record.cell_id in runs)
    ]
    done = {r.cell_id for r in here if not (retry_failed and r.status in spool.FAILED)}
    left = [cell for cell in cells if identify(cell)[0] not in done]
    failed = {record.cell_id for record in here} - done
    left.sort(key=lambda cell: identify(cell)[0] in failed)
    print(f"{len(cells)} cells, {len(cells) - len(left)} done already", file=sys.stderr)
    return left


def _print(record: Record, results: TextIO) -> None:
    results.write(json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
    results.flush()


def _store(record: Record, folder: Path) -> None:
    spool.write(folder, record)


def _protect_stdout() -> TextIO:
    """The real stdout for records; whatever a library prints goes to stderr from now on."""
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m normbench.engine.worker",
        description="Run cells: one JSON object per line in, one record per line out.",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--spool", type=Path, help="write record files here; skip finished cells")
    parser.add_argument(
        "--retry-failed", action="store_true",
        help="with --spool: run cells again that ended in an error or a timeout",
    )  # fmt: skip
    parser.add_argument(
        "--supervised", action="store_true",
        help="run cells in a process of its own, replaced after one that fails or takes too long",
    )  # fmt: skip
    parser.add_argument(
        "--deadline", type=float, default=float("inf"),
        help="seconds after which no further cell is started",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
