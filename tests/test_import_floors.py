"""Imports go down the floors, never up; the worker stays lean and the board light.

Read from the source, so that an import is caught wherever it stands, in a function too.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOMES = {"normbench": "normbench", "kernels": "normbench.kernels"}
HOMES["leaderboard"] = "normbench.leaderboard"

FLOORS = {
    1: ("cells", "codehash"),
    2: ("kernels", "registry", "method_info", "methods", "domains"),
    3: ("surgery", "data", "networks", "recalibration"),
    4: ("tasks", "timing", "capabilities"),
    5: (
        "engine", "store", "spool", "summary", "tracking", "stats", "suites", "claims", "doctor",
        "benchmark_json",
    ),
    6: ("leaderboard",),
    7: ("cli", "__main__"),
}  # fmt: skip
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

LEAN = {"torch", "timm", "torchvision", "PIL", "yaml", "numpy", "pyarrow"}
"""What a machine that only executes cells has: torch, timm (and what comes with it), pyarrow."""

HEAVY = ("torch", "timm", "numpy", "polars", "pydantic", "datasets", "wandb", "altair", "typer")


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    found = {}
    for folder, package in HOMES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, *, at_import_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of what a module imports, type-checking imports left out."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), at_import_only):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                dotted = f"{base}.{alias.name}"
                yield node.lineno, dotted if dotted in modules() else base


def _statements(node: ast.AST, at_import_only: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if at_import_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield child
        yield from _statements(child, at_import_only)


def room(name: str) -> str:
    """`surgery` for `normbench.surgery.slots`; empty for the package itself."""
    return ".".join(name.split(".")[1:2])


@functools.cache
def loaded_with(name: str) -> frozenset[str]:
    """Everything that importing a module of ours loads directly or through ours, by source."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in modules():
            parents = current.split(".")
            todo += [".".join(parents[:n]) for n in range(1, len(parents))]
            todo += [target for _, target in imports(current, at_import_only=True)]
    return frozenset(seen)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name: str) -> None:
    if name == "normbench":
        return  # its public names are loaded lazily; the light-import test covers it
    assert room(name) in FLOOR_OF, f"{name}: give {room(name)!r} a floor in FLOORS and DESIGN.md"
    floor = FLOOR_OF[room(name)]
    climbs = [
        f"{modules()[name].relative_to(ROOT)}:{line}: floor {floor} imports {target} of floor "
        f"{FLOOR_OF[room(target)]}"
        for line, target in imports(name)
        if room(target) in FLOOR_OF and target.startswith("normbench.")
        if FLOOR_OF[room(target)] > floor
    ]
    assert not climbs, "\n".join(climbs)


@pytest.mark.parametrize(
    "name",
    [
        "normbench.engine.worker", "normbench.spool", "normbench.tasks.layer",
        "normbench.timing.follower",
    ],
)  # fmt: skip
def test_executing_a_cell_loads_only_what_a_gpu_machine_has(name: str) -> None:
    assert name in modules()
    allowed = LEAN | set(sys.stdlib_module_names) | {"normbench", "__future__"}
    for module in sorted(loaded_with(name) & modules().keys()):
        for line, target in imports(module, at_import_only=True):
            package = target.partition(".")[0]
            where = f"{modules()[module].relative_to(ROOT)}:{line}"
            assert package in allowed, f"{where} imports {package}, and {name} loads this module"


def test_the_floor_of_cells_is_the_standard_library() -> None:
    for name in ("normbench.cells", "normbench.codehash"):
        packages = {target.partition(".")[0] for _, target in imports(name)}
        assert packages <= set(sys.stdlib_module_names) | {"normbench"}


def test_the_board_reads_no_module_that_loads_torch() -> None:
    for name in modules():
        if room(name) == "leaderboard":
            assert not loaded_with(name) & {"torch", "timm", "normbench.registry"}, name


def test_the_board_imports_where_torch_is_not_installed() -> None:
    names = [name for name in modules() if room(name) == "leaderboard"]
    code = f"""
import importlib, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "torchvision"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled())
for name in {names!r}:
    importlib.import_module(name)
"""
    _run(code)


def test_importing_normbench_loads_nothing_heavy() -> None:
    loaded = _run(
        f"import sys, normbench; normbench.__version__, dir(normbench)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    assert loaded.split() == []


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
