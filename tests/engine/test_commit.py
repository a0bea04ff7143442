"""Which commit a record names: that of the checkout whose code ran, and whether it was changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import normbench
from normbench.engine import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "checkout" / "normbench"
    package.mkdir(parents=True)
    for name in ("__init__.py", "cells.py"):
        (package / name).touch()
    git(package, "init", "--quiet")
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message", "all of it")
    return package


def told(home: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(normbench, "__file__", str(home / "__init__.py"))
    return environment._git()


def test_a_checkout_and_a_tree_of_links_into_it_name_its_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links" / "normbench"
    links.mkdir(parents=True)
    for path in checkout.iterdir():
        (links / path.name).symlink_to(path)
    clean = {"sha": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    assert told(checkout, monkeypatch) == told(links, monkeypatch) == clean


def test_changes_are_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "cells.py").write_text("changed = True\n")
    found = told(checkout, monkeypatch)
    assert found == {"sha": git(checkout, "rev-parse", "HEAD"), "dirty": True}


def test_a_copy_inside_another_projects_repository_names_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = checkout.parent / "site-packages" / "normbench"
    copy.mkdir(parents=True)
    for name in ("__init__.py", "cells.py"):
        (copy / name).touch()
    assert told(copy, monkeypatch) is None
