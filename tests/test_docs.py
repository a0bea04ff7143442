"""The code blocks of README.md, CONTRIBUTING.md, docs/ and suites/README.md are true: they run.

Python blocks of a file run in one process, in order, and share their names. Lines of sh and console
blocks run one by one in an empty folder beside a link to suites/; in a console block the lines
after a `$ command` must appear in its output (`…` stands for any line). `make x` must be a
target; test_make.py runs those that users call. A comment before a block changes that:

    <!-- test: shrink --filter seed=0 -->   added to each `normbench` line, to make it short
    <!-- test: file my.yaml -->             the block is a file that later commands read
    <!-- test: skip needs Docker -->        not run, with the reason

markdown-it-py (a dependency of rich, hence there anyway) finds the blocks. Libraries that run them
know neither shell commands nor a shorter form of one, which is most of this file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", "CONTRIBUTING.md", "suites/README.md"]
FILES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))

DIRECTIVE = re.compile(r"<!-- test: (skip|shrink|file) (.+?) -->")
SHELLS = ("sh", "bash", "console")
RUNNABLE = ("normbench", "python", "mkdir", "cp", "cat", "head")

RUN_PYTHON = """
import json, sys
names = {"__name__": "__docs__"}
for line, code in json.load(sys.stdin):
    exec(compile("\\n" * line + code, sys.argv[1], "exec"), names)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line, and the directive before it."""

    language: str
    text: str
    line: int
    directive: str
    argument: str


def blocks(path: Path) -> list[Block]:
    found, directive = [], ("", "")
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type == "html_block":
            match = DIRECTIVE.search(token.content)
            directive = (match[1], match[2]) if match else ("", "")
        elif token.type == "fence":
            assert token.map is not None
            language = token.info.split(" ")[0]
            found.append(Block(language, token.content, token.map[0] + 1, *directive))
            directive = ("", "")
        else:
            assert not directive[0], f"{path}: a test comment is followed by {token.tag}, no block"
    return found


def commands(block: Block) -> list[tuple[int, str, list[str]]]:
    """Line number, command and expected output of each command of a shell block."""
    found: list[tuple[int, str, list[str]]] = []
    continues = False
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        prompt = line.startswith("$ ")
        if continues:
            at, command, output = found[-1]
            found[-1] = (at, command + " " + line.strip().removesuffix("\\").strip(), output)
        elif block.language == "console" and not prompt:
            if found and line.strip():
                found[-1][2].append(line.strip())
            continue
        elif line.strip() and not line.startswith("#"):
            command = line.removeprefix("$ ").strip().removesuffix("\\").strip()
            found.append((number, command, []))
        continues = line.endswith("\\")
    return found


def workspace(path: Path, folder: Path) -> dict[str, str]:
    """An empty folder with the suites and the files that the page shows; the environment."""
    (folder / "suites").symlink_to(ROOT / "suites")
    for block in blocks(path):
        if block.directive == "file":
            (folder / block.argument).write_text(block.text, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "NORMBENCH_RESULTS"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment


def run_line(command: str, block: Block, folder: Path, environment: dict[str, str]) -> str:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        unknown = [w for w in words[1:] if "=" not in w and w not in targets]
        assert not unknown, f"make has no target {unknown}"
        return ""
    assert words[0] in RUNNABLE, f"{words[0]!r} is not run here: say why with a test: skip comment"
    if block.directive == "shrink" and words[0] == "normbench":
        command = f"{command} {block.argument}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", FILES)
def test_blocks_that_are_not_run_say_why(name: str) -> None:
    """A skip for the eye: pytest's summary prints the reasons."""
    reasons = [f"line {b.line}: {b.argument}" for b in blocks(ROOT / name) if b.directive == "skip"]
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")


@pytest.mark.parametrize("name", FILES)
def test_commands_run(name: str, tmp_path: Path) -> None:
    environment = workspace(ROOT / name, tmp_path)
    for block in blocks(ROOT / name):
        if block.language not in SHELLS or block.directive == "skip":
            continue
        for line, command, expected in commands(block):
            try:
                output = run_line(command, block, tmp_path, environment)
            except AssertionError as error:
                pytest.fail(f"{name}:{line}: {error}", pytrace=False)
            printed = {shown.strip() for shown in output.splitlines()}
            missing = [shown for shown in expected if shown != "…" and shown not in printed]
            assert not missing, f"{name}:{line}: `{command}` does not print {missing}\n{output}"


@pytest.mark.parametrize("name", FILES)
def test_python_runs(name: str, tmp_path: Path) -> None:
    code = [
        (block.line, block.text)
        for block in blocks(ROOT / name)
        if block.language == "python" and block.directive != "skip"
    ]
    if not code:
        pytest.skip(f"{name} has no Python to run")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_PYTHON, name], input=json.dumps(code),
        cwd=tmp_path, env=workspace(ROOT / name, tmp_path), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", FILES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
    broken = [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert not broken, f"{name}: {broken}"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"^\| \[([a-z-]+\.md)\]", index, re.MULTILINE))
