"""The committed budget of every kernel, and what makes a kernel worse than it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import triton
from kernel_cases import Entry, entries
from kernel_compile import MAIN_TARGET, TARGETS, Compiled

BUDGET = Path(__file__).resolve().parent.parent / "tests" / "kernels" / "budget.json"
REFRESH = "make kernels-report UPDATE=1"

WARP: dict[str, int] = {target: of.warp_size for target, of in TARGETS.items()}
THREADS = 2048
"""Of a multiprocessor, or of a compute unit."""

SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10, "gfx942": 64 << 10}
RESERVED = {"gfx942": 0}
"""Bytes of shared memory of a multiprocessor, and those that each program takes beside its own."""


def plan() -> dict[str, tuple[str, Entry]]:
    """All that is compiled, by its name in the budget: the target and the kernel."""
    return {
        f"{target} | {name}": (target, entry)
        for target in TARGETS
        for name, entry in entries().items()
        if target == MAIN_TARGET
        or (entry.elsewhere and not (entry.launch.cooperative and target.startswith("gfx")))
    }


def version() -> str:
    """Triton's major and minor version: registers are compared within one."""
    return ".".join(triton.__version__.split(".")[:2])


OTHER_SPILLS = 2
"""Registers of a thread that a kernel may spill under a Triton that it is not tuned for."""


def read(path: Path = BUDGET) -> tuple[str, dict[str, Compiled]]:
    """Triton's version and the figures, by name."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    kernels = {n: Compiled(spills=0, **figures) for n, figures in stored["kernels"].items()}
    return stored["triton"], kernels


def write(kernels: dict[str, Compiled], path: Path = BUDGET) -> None:
    """One line per kernel, sorted, so that a difference reads well. No budget allows spills."""
    lines = []
    for name in sorted(kernels):
        figures = asdict(kernels[name])
        del figures["spills"]
        lines.append(f"{json.dumps(name)}: {json.dumps(figures)}")
    body = ",\n".join(lines)
    text = f'{{"triton": "{version()}", "kernels": {{\n{body}\n}}}}\n'
    path.write_text(text, encoding="utf-8")


def complaints(
    now: Compiled, before: Compiled, target: str, warps: int, *, same_version: bool = True
) -> list[str]:
    """What got worse: spills, narrower accesses; with the same Triton also what limits occupancy.

    Registers have slack, 8 or a tenth; shared memory as much as leaves the number of programs on a
    multiprocessor as it was. With another Triton so have spills, by two registers of a thread: they
    are not what tiles can be chosen by.
    """
    found = []
    spilled = now.spills // (4 if target.startswith("sm_") else 1)
    if now.spills and (same_version or spilled > OTHER_SPILLS):
        found.append(f"spills {now.spills} (bytes of a thread; registers on gfx942)")
    for name, bits in before.widths.items():
        if now.widths.get(name, 0) < bits:
            found.append(f"accesses {name} by {now.widths.get(name, 0)} bits, not {bits}")
    if same_version and now.registers > max(before.registers + 8, 1.1 * before.registers):
        found.append(f"takes {now.registers} registers, not {before.registers}")
    was = programs(target, before.shared, warps)
    if same_version and programs(target, now.shared, warps) < was:
        found.append(f"takes {now.shared} bytes of shared memory, not {before.shared}")
    return found


def programs(target: str, shared: int, warps: int) -> int:
    """How many programs a multiprocessor holds by its threads and its shared memory."""
    by_threads = THREADS // (warps * WARP[target])
    taken = shared + RESERVED.get(target, 1 << 10)
    return min(by_threads, SHARED[target] // taken) if taken else by_threads
