"""`make gpu` where there is no GPU: it leaves no test file out, and says that CUDA is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu.py"
NEEDS_MORE: dict[str, set[str]] = {}
"""Files that a machine with nothing but the GPU script's packages leaves out, and what for."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("source_tree", None)


def test_every_test_file_is_run_on_a_machine_with_the_needed_packages_only(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {*script.NEEDED, "torchvision", "PIL", "yaml", *sys.stdlib_module_names}
    monkeypatch.setattr(script, "_exists", lambda package: package in there)
    files = list(script._test_files())
    left_out = {str(f.relative_to(ROOT)): script._foreign_imports(f) for f in files}
    assert {name: missing for name, missing in left_out.items() if missing} == NEEDS_MORE
    assert {Path(f).parent for f in left_out} == {Path(f) for f in script.TEST_FOLDERS}


def test_without_cuda_it_says_so_and_ends_with_2() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "finds no CUDA device" in done.stdout
