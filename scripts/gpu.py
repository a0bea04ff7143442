"""`make gpu`: what only a CUDA machine can tell, in stages of at most 8 minutes.

Needs torch, timm, numpy, pyarrow and pytest, and no installation: the package is imported through
a tree of links in build/gpu. A stage that ran out of time, or was stopped, continues when called
again. Everything it finds lands in gpu-records/ (docs/gpu.md).

Exit code: 0 all done; 1 something failed; 2 no CUDA, or a package is missing; 3 more is left to do.
"""

from __future__ import annotations

import argparse
import ast
import collections
import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from source_tree import ROOT, make_source_tree

if TYPE_CHECKING:
    from normbench.cells import Cell

NEEDED = ("torch", "timm", "numpy", "pyarrow", "pytest")
STAGE_SECONDS = 470
LAST_CELL_STARTS = 420
RECORDS = ROOT / "gpu-records"
SPOOL = RECORDS / "spool"
CELLS = ROOT / "suites" / "cells"
SUITES = {
    "accuracy": ("small-batch",),
    "throughput": ("throughput-cuda", "throughput-cuda-sweep"),
    "memory": ("memory-cuda",),
}
"""By stage, the suites whose cells it runs, in this order."""
TEST_FILES = {
    "tests": ("tests/gpu/test_cuda_*", "tests/contract/*", "tests/methods/*", "tests/surgery/*"),
    "kernel-tests": ("tests/gpu/test_fused_*", "tests/interpreter/*"),
}
"""By stage. What tests/interpreter interprets where there is no GPU, it compiles on one."""
DONE, FAILED, REFUSED, UNFINISHED = 0, 1, 2, 3


def tests(stage: str) -> int:
    """Run a stage's test files, one process per file; files that passed stay passed."""
    deadline = time.monotonic() + STAGE_SECONDS
    state, code = RECORDS / f"{stage}.json", _code_digest()
    known = json.loads(state.read_text()) if state.exists() else {}
    passed: list[str] = known.get("passed", []) if known.get("code") == code else []
    failed: list[str] = []
    for path in _test_files(stage):
        name = str(path.relative_to(ROOT))
        if name in passed:
            print(f"{name}: passed before", flush=True)
            continue
        if missing := sorted(_foreign_imports(path)):
            print(f"{name}: not run, needs {', '.join(missing)}", flush=True)
            continue
        try:
            outcome = _pytest(name, deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            return _out_of_time(stage)
        (passed if outcome in (0, 5) else failed).append(name)  # 5: the file has slow tests only
        state.write_text(json.dumps({"code": code, "passed": passed, "failed": failed}, indent=1))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return FAILED if failed else DONE


def suite_cells(stage: str) -> int:
    """Run the cells of the stage's suites that no record from here answers yet."""
    files = (CELLS / f"{suite}.cells.jsonl.gz" for suite in SUITES[stage])
    return _run(stage, "".join(gzip.decompress(path.read_bytes()).decode() for path in files))


def kernel_bench(stage: str) -> int:
    """Time the layers with kernels against their peers."""
    from kernel_cells import kernel_cells

    return _measured(stage, kernel_cells())


def layers(stage: str) -> int:
    """Time every method's layer against batch norm's."""
    from layer_cells import layer_cells

    return _run(stage, _lines(layer_cells()))


def resnet50_step(stage: str) -> int:
    """Time training steps of whole models."""
    from kernel_cells import step_cells

    return _measured(stage, step_cells())


def kernel_tune(stage: str) -> int:
    """Try other tiles for the kernels; a table, nothing else."""
    from kernel_tune import sweep

    return DONE if sweep(RECORDS / f"{stage}.json", STAGE_SECONDS) else _out_of_time(stage)


STAGES: dict[str, Callable[[str], int]] = {
    "tests": tests,
    "kernel-tests": tests,
    "kernel-bench": kernel_bench,
    "resnet50-step": resnet50_step,
    "throughput": suite_cells,
    "memory": suite_cells,
    "layers": layers,
    "accuracy": suite_cells,
    "kernel-tune": kernel_tune,
}
ON_REQUEST = ("kernel-tune",)


def _measured(stage: str, cells: Sequence[Cell]) -> int:
    """Run cells and print what all records so far amount to."""
    from kernel_table import tables

    from normbench import spool

    outcome = _run(stage, _lines(cells))
    text = tables(spool.read(SPOOL)[0])
    (RECORDS / "kernels.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return outcome


def _lines(cells: Sequence[Cell]) -> str:
    return "".join(json.dumps(cell.to_json()) + "\n" for cell in cells)


def _run(stage: str, cells: str) -> int:
    """Run cells, JSON lines, that no record from here answers yet."""
    worker = [sys.executable, "-m", "normbench.engine.worker", "--device", "cuda"]
    worker += ["--spool", str(SPOOL), "--deadline", str(LAST_CELL_STARTS)]
    worker += ["--retry-failed", "--supervised"]
    try:
        outcome = subprocess.run(
            worker, input=cells, text=True, cwd=ROOT, env=_environment(), timeout=STAGE_SECONDS,
            check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:  # the cell in flight is lost, no other
        outcome = UNFINISHED
    failed = _summarize_spool(cells)
    if outcome == UNFINISHED:
        return _out_of_time(stage)
    return FAILED if outcome or failed else DONE


def _summarize_spool(cells: str) -> bool:
    """Print how these cells ended, by status; whether any tells of a fault of ours.

    A cell's newest record counts; those of other cells do not.
    """
    from normbench import spool
    from normbench.engine.execute import identify
    from normbench.engine.worker import read_cells

    wanted = {identify(cell)[0] for cell in read_cells(cells.splitlines())}
    records, problems = spool.read(SPOOL)
    for problem in problems:
        print(problem)
    records.sort(key=lambda record: record.started_at)
    newest = {record.cell_id: record.status for record in records if record.cell_id in wanted}
    statuses = collections.Counter(newest.values())
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    print(f"{SPOOL}: {len(newest)} of {len(wanted)} cells have a record: {counts or 'none'}")
    return statuses["error"] > 0


def _test_files(stage: str) -> Iterator[Path]:
    for pattern in TEST_FILES[stage]:
        yield from sorted(p for p in ROOT.glob(f"{pattern}.py") if p.name.startswith("test_"))


def _foreign_imports(path: Path) -> set[str]:
    """Top-level packages that a test file imports and this machine does not have."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    known = {"tests", "normbench", "conftest"}
    return {n for n in names - known if not (_beside(path, n) or _exists(n))}


def _beside(path: Path, name: str) -> bool:
    """Whether a name is a module of ours: pytest puts tests/ and the file's folder on the path."""
    return any(
        (folder / name).is_dir() or (folder / f"{name}.py").exists()
        for folder in (path.parent, ROOT / "tests")
    )


def _pytest(name: str, seconds: float) -> int:
    if seconds < 15:  # importing torch and timm alone may take that
        raise subprocess.TimeoutExpired(name, seconds)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", name]
    if name.startswith("tests/interpreter") and _exists("xdist"):
        command += ["-n", "8"]  # most of their time is Triton's compiler, on one core each
    return subprocess.run(
        command, cwd=ROOT, env=_environment(), timeout=seconds, check=False
    ).returncode


def _out_of_time(stage: str) -> int:
    print(f"{stage}: out of time; the same command continues from here")
    return UNFINISHED


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "build" / "gpu"), "PYTHONUNBUFFERED": "1"}


def _code_digest() -> str:
    """What the passed tests were passed with: every Python file of the package and of its tests."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in ("kernels", "normbench", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _exists(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _ready() -> bool:
    if missing := [package for package in NEEDED if not _exists(package)]:
        print(f"make gpu needs {', '.join(NEEDED)}; {sys.executable} lacks {', '.join(missing)}.")
        return False
    import torch

    if not torch.cuda.is_available():
        print(f"make gpu needs a CUDA machine; torch {torch.__version__} finds no CUDA device.")
        return False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    usual = [stage for stage in STAGES if stage not in ON_REQUEST]
    parser.add_argument(
        "--stage", action="append", choices=STAGES, help=f"default: {', '.join(usual)}"
    )
    stages = parser.parse_args().stage or usual
    if not _ready():
        return REFUSED
    RECORDS.mkdir(exist_ok=True)
    sys.path.insert(0, str(make_source_tree(ROOT / "build" / "gpu")))
    outcomes = []
    for stage in stages:
        print(f"== stage {stage}: at most {(STAGE_SECONDS + 10) // 60} minutes", flush=True)
        outcomes.append(STAGES[stage](stage))
    return FAILED if FAILED in outcomes else max(outcomes)


if __name__ == "__main__":
    sys.exit(main())
