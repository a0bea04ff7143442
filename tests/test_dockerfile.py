"""The Dockerfile's steps, run in an empty folder, since tests have no Docker engine.

What COPY names is copied as the build context would give it; the RUN lines about the project run
in a virtual environment that sees the packages installed here, without a network. Lines about the
base system (apt-get, useradd) are read, not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_COMMANDS = ("apt-get", "useradd")


def instructions() -> list[tuple[str, str]]:
    """Keyword and argument of every instruction, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def context(folder: Path) -> Path:
    """The build context: what .dockerignore, which starts by leaving out all, lets in."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in rules, "this test reads a .dockerignore that names what comes in"
    dropped = shutil.ignore_patterns(*(r.removeprefix("**/") for r in rules if r.startswith("**/")))
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=dropped)
        else:
            shutil.copy(ROOT / name, target)
    return folder


def copy(source: Path, target: Path, *, into: bool) -> None:
    """COPY: a folder's content goes to the target, a file to it or into it."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        destination = target / source.name if into else target
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, destination)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in place of the image's root, after all steps."""
    image = tmp_path_factory.mktemp("image")
    given = context(tmp_path_factory.mktemp("context"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", image / "python"], check=True)
    site = next((image / "python/lib").glob("python*")) / "site-packages"
    (site / "installed_here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    workdir = image
    for keyword, argument in instructions():
        if keyword == "WORKDIR":
            workdir = image / argument.lstrip("/")
            workdir.mkdir(parents=True, exist_ok=True)
        elif keyword == "COPY":
            *sources, target = argument.split()
            place = image / target.lstrip("/") if target.startswith("/") else workdir / target
            for source in sources:
                copy(given / source, place, into=target.endswith("/"))
        elif keyword == "RUN" and not any(word in argument for word in SYSTEM_COMMANDS):
            run(argument, workdir, image)
    return image


def run(command: str, workdir: Path, image: Path) -> str:
    environment = os.environ | {
        "PATH": f"{image}/python/bin:{image}/usr/local/bin:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads "0" as: do without isolation
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        ["sh", "-euc", command], cwd=workdir, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_it_runs_as_a_user_that_is_not_root() -> None:
    users = [argument for keyword, argument in instructions() if keyword == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert any(f"useradd --create-home {users[-1]}" in a for k, a in instructions() if k == "RUN")


def test_the_steps_install_the_package_at_its_installed_names(image: Path) -> None:
    code = "import normbench, normbench.kernels as k, normbench.leaderboard as b"
    printed = run(f"python -c '{code}; print(k.__file__, b.__file__)'", image / "data", image)
    site = next((image / "python/lib").glob("python*")) / "site-packages/normbench"
    assert printed.split() == [
        str(site / "kernels/__init__.py"),
        str(site / "leaderboard/__init__.py"),
    ]


@pytest.mark.parametrize("spelling", [[], ["normbench"]])
def test_the_entry_point_takes_commands_with_and_without_the_name(
    image: Path, spelling: list[str]
) -> None:
    entry = shlex.join(["docker-entrypoint", *spelling, "--version"])
    assert run(entry, image / "data", image).startswith("normbench ")


def test_the_suites_lie_where_the_container_starts(image: Path) -> None:
    workdirs = [argument for keyword, argument in instructions() if keyword == "WORKDIR"]
    assert (image / workdirs[-1].lstrip("/") / "suites/small-batch.yaml").is_file()
