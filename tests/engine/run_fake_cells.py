"""Program for the crash tests: run the cells that arrive as JSON lines, with two workers."""

from __future__ import annotations

import json
import sys

import fake_task  # noqa: F401  # registers the task

import normbench
from normbench.cells import Cell
from normbench.engine import events


def show(event: events.Event) -> None:
    kind = type(event).__name__
    seed = event.record.cell.seed if isinstance(event, events.Finished) else ""
    print(kind, seed, flush=True)


# No `if __name__ == "__main__"`: users' scripts and notebooks have none either.
summary = normbench.run(
    [Cell.from_json(json.loads(line)) for line in sys.stdin], out=sys.argv[1], device="cpu",
    workers=2, on_event=show,
)  # fmt: skip
sys.exit(summary.exit_code)
