"""What is installed, from an editable install and from a wheel, and that the pins fit it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import normbench

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (
    "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "normbench", "kernels",
    "leaderboard",
)  # fmt: skip
IMPORT_BOTH = "import normbench, normbench.kernels as k, normbench.leaderboard as b"


def _project() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return settings


def _requirements() -> list[Requirement]:
    project = _project()["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(r) for r in [*project["dependencies"], *(r for e in extras for r in e)]]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt has lines that are no pins"
    names = [canonicalize_name(name) for name, _ in pairs]
    assert len(set(names)) == len(names), "constraints.txt pins a package twice"
    return dict(zip(names, (version for _, version in pairs), strict=True))


def _build(kind: str, source: Path, out: Path) -> Path:
    """Build with the backend itself: no network, no build isolation."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def _python(code: str, cwd: Path) -> list[str]:
    """Lines printed by a process that starts in an empty folder."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that building leaves nothing behind in the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_a_wheel_owns_one_global_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"normbench"}


def test_a_wheel_holds_every_source_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    expected = {"normbench/py.typed"}
    for folder, package in (("normbench", ""), ("kernels", "kernels/")):
        paths = (ROOT / folder).rglob("*.py")
        expected |= {f"normbench/{package}{p.relative_to(ROOT / folder)}" for p in paths}
    for pattern in ("*.py", "templates/*", "static/*", "results/*", "catalogue.json"):
        paths = (ROOT / "leaderboard").rglob(pattern)
        expected |= {f"normbench/{p.relative_to(ROOT)}" for p in paths if p.is_file()}
    for path in (ROOT / "normbench/data/embedded").iterdir():
        expected |= {str(path.relative_to(ROOT))} if path.suffix in (".parquet", ".md") else set()
    assert sum(name.endswith(".parquet") for name in expected) >= 2
    assert expected <= inside, f"not in the wheel: {sorted(expected - inside)}"


def test_a_wheel_imports_at_the_installed_names(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {IMPORT_BOTH}; print(k.__file__)"
    code += "; print(b.__file__); print(normbench.__version__)"
    assert _python(code, empty) == [
        str(site / "normbench/kernels/__init__.py"),
        str(site / "normbench/leaderboard/__init__.py"),
        normbench.__version__,
    ]


def test_an_editable_install_imports_at_the_installed_names(source: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(_build("editable", source, tmp_path)) as archive:
        archive.extractall(site)
    # -S leaves out site-packages, where another install of the project may come first.
    code = f"import site; site.addsitedir({str(site)!r}); {IMPORT_BOTH}; print(k.__file__)"
    command = [sys.executable, "-S", "-c", code + "; print(b.__file__)"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        str(source / "kernels/__init__.py"),
        str(source / "leaderboard/__init__.py"),
    ], done.stderr


def test_every_package_is_declared() -> None:
    declared = set(_project()["tool"]["setuptools"]["packages"])
    homes = {"normbench": "normbench", "kernels": "normbench.kernels"}
    homes["leaderboard"] = "normbench.leaderboard"
    found = {
        ".".join((package, *init.parent.relative_to(ROOT / folder).parts))
        for folder, package in homes.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert declared == found


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    pins = _pins()
    wrong = [str(r) for r in _requirements() if pins.get(canonicalize_name(r.name)) is None]
    assert not wrong, f"not in constraints.txt (make constraints): {wrong}"
    outside = [r for r in _requirements() if pins[canonicalize_name(r.name)] not in r.specifier]
    assert not outside, f"pinned outside pyproject.toml's bounds: {outside}"


def test_requirements_of_requirements_are_pinned() -> None:
    pins, seen = _pins(), set()
    todo = [(r, r.extras) for r in _requirements()]
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement} is wanted and not in constraints.txt"
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        for need in map(Requirement, needs):
            environments = [{"extra": extra} for extra in [*extras, ""]]
            if not need.marker or any(need.marker.evaluate(e) for e in environments):
                todo.append((need, need.extras))


def test_pins_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    assert not re.search(r"^-|://|@|file:", text, re.MULTILINE)
    assert all(Version(version).local is None for version in _pins().values())


def test_the_version_is_said_once() -> None:
    version = normbench.__version__
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {version}\n" in citation
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first is not None
    assert first.group(1) == version
