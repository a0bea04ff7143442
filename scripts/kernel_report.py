"""What every fused kernel takes of a GPU, without one: `make kernels-report`.

Compiles the kernels for the targets of kernel_compile.py and prints a table in Markdown; with
--update also writes tests/kernels/budget.json, which tests/kernels holds the kernels to.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import triton
from kernel_budget import BUDGET, plan, write
from kernel_cases import kernel_name
from kernel_compile import Compiled, measure

HEAD = "| target | shape | kernel | form | tile | warps | registers | spills | shared | bits |"


def measured(name: str) -> Compiled:
    target, entry = plan()[name]
    return measure(entry.launch, target)


def row(name: str, compiled: Compiled) -> str:
    target, entry = plan()[name]
    fixed = entry.launch.constants
    tile = f"{fixed['R']}×{fixed['K']}" if "K" in fixed else ""
    widths = ", ".join(f"{tensor} {bits}" for tensor, bits in compiled.widths.items())
    cells = (
        target, entry.shape.name, kernel_name(entry.launch), entry.form, tile, entry.launch.warps,
        compiled.registers, compiled.spills, compiled.shared, widths,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--update", action="store_true", help=f"also write {BUDGET.name}")
    update = parser.parse_args().update
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="normbench-kernels-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # what is printed was compiled now
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            kernels = dict(zip(plan(), pool.map(measured, plan(), chunksize=8), strict=True))
    print(HEAD, "|---" * HEAD.count(" | ") + "|---|", sep="\n")
    for name, compiled in kernels.items():
        print(row(name, compiled))
    seconds = time.monotonic() - start
    print(f"{len(kernels)} kernels, Triton {triton.__version__}, {seconds:.0f} s", file=sys.stderr)
    if update:
        write(kernels)
        print(f"wrote {BUDGET}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
