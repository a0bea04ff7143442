"""What every test may rely on: one thread, seeded, offline, folders of its own.

Set before anything imports torch or a Hugging Face library, and inherited by the processes that
tests start. Nothing here needs more than pytest, so that the tests also run on GPU machines that
have little else.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_SETTINGS = {
    # Sums in parallel depend on the number of threads, and two test processes share the cores.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",  # tests of the sink name their mode
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
_FOLDERS = {
    "NORMBENCH_CACHE": "cache",
    "NORMBENCH_RESULTS": "results",
    "HF_HOME": "huggingface",
    "WANDB_DIR": "wandb",
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_CONFIG_DIR": "wandb",
    "TRITON_CACHE_DIR": "triton",
}


def _prepare() -> Path | None:
    """Settings and folders, made once and inherited by the worker processes of pytest-xdist."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return None
    scratch = Path(tempfile.mkdtemp(prefix="normbench-tests-"))
    os.environ.update(_SETTINGS)
    for variable, name in _FOLDERS.items():
        (scratch / name).mkdir(exist_ok=True)
        os.environ[variable] = str(scratch / name)
    for variable in ("WANDB_API_KEY", "WANDB_BASE_URL", "RAY_ADDRESS"):
        os.environ.pop(variable, None)
    return scratch


# Not in a hook: where a folder of tests is named, its conftest.py, which may import torch, is
# loaded after this file but before any hook of this file is called.
_SCRATCH = _prepare()


def pytest_configure(config: pytest.Config) -> None:
    """Take the folders away at the end."""
    if _SCRATCH is not None:
        config.add_cleanup(lambda: shutil.rmtree(_SCRATCH, ignore_errors=True))


INTERPRETER = ROOT / "tests" / "interpreter"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Its tests change what Triton does in the process: they run only where they are named."""
    return (collection_path == INTERPRETER and not _named(config)) or None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say so."""
    return None if _named(config) else "tests/interpreter: not in this process; make test runs it"


def _named(config: pytest.Config) -> bool:
    return any(INTERPRETER.name in arg for arg in config.args)


def pytest_sessionstart() -> None:
    """Property tests draw the same examples every time and have no deadline of their own."""
    try:
        from hypothesis import settings
    except ImportError:
        return
    settings.register_profile("normbench", deadline=None, derandomize=True, database=None)
    settings.load_profile("normbench")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, in whatever order tests run."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a method whose kernels need CUDA, in the catalogue for the length of a test."""
    import made_up_kernels

    from normbench import registry

    monkeypatch.setattr(registry, "_METHODS", {n: registry.get(n) for n in registry.list_methods()})
    return made_up_kernels.register()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
