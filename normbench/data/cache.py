"""Decoded arrays on disk, so that a fresh process maps them in milliseconds.

One folder per entry: an .npy file per array and `entry.json` with their checksums. An entry is
written beside its place and renamed into it; a damaged one is dropped and decoded again; a cache
that cannot be written is none. `NORMBENCH_CACHE` names the folder, else the user's cache folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
"""Version of the decoding and of the entry's shape: part of every key."""

Arrays = Mapping[str, NDArray[Any]]


def folder() -> Path:
    """Where decoded data sets are kept."""
    if given := os.environ.get("NORMBENCH_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "normbench"


def read(key: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """The arrays, mapped copy-on-write, and the facts of an entry; None if it is not usable."""
    place = folder() / key
    if not place.exists():
        return None
    try:
        entry = json.loads((place / "entry.json").read_text())
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="c") for name in entry["crc32"]}
        if all(_checksum(arrays[name]) == crc for name, crc in entry["crc32"].items()):
            return arrays, entry["facts"]
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        pass  # damaged: dropped below like one with a wrong checksum
    shutil.rmtree(place, ignore_errors=True)
    return None


def write(key: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Store an entry, atomically; does nothing if the cache cannot be written."""
    place = folder() / key
    temporary: str | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{key}-", dir=place.parent)
        for name, array in arrays.items():
            np.save(Path(temporary, f"{name}.npy"), array)
        crc32 = {name: _checksum(array) for name, array in arrays.items()}
        entry = json.dumps({"crc32": crc32, "facts": facts})
        Path(temporary, "entry.json").write_text(entry)
        Path(temporary).rename(place)  # fails if another process was first: its entry is as good
    except OSError:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
