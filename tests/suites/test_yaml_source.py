"""Scalars as YAML 1.2 has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from normbench.suites.yaml_source import Source, read


def source(tmp_path: Path, text: str) -> Source:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode())
    return read(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5E4", 5e4),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ('"1e-3"', "1e-3"),
        ("'on'", "on"),
        ("2026-01-02", "2026-01-02"),
        ("1e-3x", "1e-3x"),
        ("resnet_18", "resnet_18"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
    ],
)
def test_a_scalar_has_its_plain_type(tmp_path: Path, text: str, value: Any) -> None:
    found = source(tmp_path, f"key: {text}\n").data["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("word", ["on", "Off", "YES", "no", "010", "1_000", "12:30"])
def test_an_ambiguous_word_is_refused(tmp_path: Path, word: str) -> None:
    [complaint] = source(tmp_path, f"key: {word}\n").complaints
    assert complaint.message.startswith(f"{word} means different things")


def test_an_ambiguous_key_is_refused(tmp_path: Path) -> None:
    [complaint] = source(tmp_path, "on: 1\n").complaints
    assert (complaint.location, complaint.about_key) == (("on",), True)


def test_a_key_that_is_a_number_is_refused(tmp_path: Path) -> None:
    [complaint] = source(tmp_path, "1: a\n").complaints
    assert complaint.message == "expected text as a key; quote it"


def test_a_number_too_long_to_be_meant_is_refused(tmp_path: Path) -> None:
    [complaint] = source(tmp_path, f"key: {'9' * 5000}\n").complaints
    assert "more than 18 digits" in complaint.message


def test_windows_line_ends_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    assert source(tmp_path, "\ufeffa: 1\r\nb: 2\r\n").data == {"a": 1, "b": 2}
