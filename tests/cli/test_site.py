from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from example_records import make_record
from typer.testing import CliRunner, Result

from normbench import cli
from normbench.leaderboard.publish import MARKER, SiteError
from normbench.store import Store


def normbench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["site", *map(str, arguments)])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    Store(tmp_path / "results").append(make_record())
    return tmp_path / "results"


def test_build_prints_what_to_open(tmp_path: Path, results: Path) -> None:
    done = normbench("build", "--results", results, "--out", tmp_path / "site")
    index = (tmp_path / "site" / "index.html").resolve()
    assert done.exit_code == 0
    assert index.is_file()
    assert f"Open {index.as_uri()}" in done.output


def test_build_without_records_exits_1_with_a_sentence(tmp_path: Path) -> None:
    done = normbench("build", "--results", tmp_path, "--out", tmp_path / "site")
    assert (done.exit_code, done.stderr.startswith("Error: no records in")) == (1, True)


def test_build_warns_of_damaged_files(tmp_path: Path, results: Path) -> None:
    (results / "spool" / "torn-0.json").write_text("{")
    done = normbench("build", "--results", results, "--out", tmp_path / "site")
    assert "Warning: " in done.stderr
    assert "torn-0.json" in done.stderr


def test_picture_writes_an_svg(tmp_path: Path, results: Path) -> None:
    done = normbench("picture", "--results", results, "--out", tmp_path / "images" / "a.svg")
    assert done.exit_code == 0
    assert (tmp_path / "images" / "a.svg").read_text(encoding="utf-8").startswith("<svg")


def test_serve_without_a_site_says_how_to_build_one(tmp_path: Path) -> None:
    assert isinstance(normbench("serve", tmp_path).exception, SiteError)


def test_serve_names_a_port_in_use(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = normbench("serve", tmp_path, "--port", str(port))
    assert isinstance(done.exception, SiteError)
    assert f"port {port} is in use" in str(done.exception)


def test_serve_serves_until_interrupted(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    (tmp_path / "index.html").write_text("hello")
    command = [sys.executable, "-u", "-m", "normbench", "site", "serve", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "no_proxy": "127.0.0.1"},
    ) as server:
        assert server.stdout is not None
        url = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
            assert answer.read() == b"hello"
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 130
