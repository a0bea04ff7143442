"""The command line as a whole: what it imports, how it reports mistakes, its exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import typer

import normbench
from normbench import cli
from normbench.cells import CellError
from normbench.engine import WorkerError

HEAVY = "torch timm polars pydantic numpy pyarrow wandb datasets ray altair scipy rich jinja2 yaml"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "normbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def exit_of(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of `main` when a command raises `error`."""
    failing = typer.Typer(pretty_exceptions_enable=False)

    @failing.command()
    def _fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    return int(str(caught.value.code))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from normbench.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print('loaded:', [m for m in {HEAVY.split()!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["loaded: []"], done.stderr


def test_help_lists_every_command() -> None:
    listed = run("--help").stdout
    modules = [command.__name__.rpartition(".")[2] for command in cli.COMMANDS]
    names = [module.replace("_", "-") for module in modules]
    assert [name for name in names if f"\n  {name} " not in listed] == []


def test_version() -> None:
    assert run("--version").stdout == f"normbench {normbench.__version__}\n"


def test_shell_completion_offers_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "normbench"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "_NORMBENCH_COMPLETE": "complete_bash",
            "COMP_WORDS": "normbench meth",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["methods"], done.stderr


def test_misspelt_command_is_answered_with_the_nearest() -> None:
    done = run("metods")
    assert done.returncode == 2
    assert "methods" in done.stderr


def test_our_errors_are_one_sentence_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(monkeypatch, CellError("cell misses seed")) == 2
    assert capsys.readouterr().err == "Error: cell misses seed\n"


def test_a_worker_that_cannot_start_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "Traceback (most recent call last):\n  File …\nImportError: no libcudart.so"
    error = WorkerError(f"a worker process could not start (exit code 1):\n{said}")
    assert exit_of(monkeypatch, error) == 2
    sentence = "a worker process could not start (exit code 1): ImportError: no libcudart.so"
    assert capsys.readouterr().err == f"Error: {sentence}\n"


def test_a_missing_permission_names_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/results/spool")
    assert exit_of(monkeypatch, error) == 2
    assert capsys.readouterr().err == "Error: /results/spool: Permission denied\n"


def test_a_full_disk_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == 2
    assert capsys.readouterr().err == "Error: No space left on device\n"


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_of(monkeypatch, KeyboardInterrupt()) == 130


@pytest.mark.parametrize("fault", [ValueError("a bug"), KeyError("x"), OSError(errno.EIO, "io")])
def test_a_fault_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    with pytest.raises(type(fault)):
        exit_of(monkeypatch, fault)
