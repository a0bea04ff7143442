"""`hf:OWNER/NAME` and `hf:./FOLDER`: any image classification set that `datasets` can load.

`datasets` is imported here and nowhere else, when such a source is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normbench.data.contents import Contents, Located, Samples, choose_columns, class_numbers
from normbench.data.errors import DataError
from normbench.data.options import Options

REACH_SECONDS = 3.0
"""How long to wait for the Hub's first answer; `datasets` alone retries for 23 s."""


@dataclass(frozen=True)
class HubImages:
    """Images of a `datasets.Dataset`, mapped from disk, as encoded bytes."""

    source: str
    rows: Any
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> bytes:
        value = self.rows[int(index)][self.column]
        if isinstance(value, dict):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            if value.get("path"):
                return Path(value["path"]).read_bytes()
        elif isinstance(value, bytes):
            return value
        raise DataError(f"{self.source}: row {index} has no image bytes in {self.column!r}")


def check_name(name: str) -> None:
    """Refuse what is neither a data set on the Hub nor a folder here.

    Raises:
        DataError: with what was expected.
    """
    if is_local(name):
        if not Path(name).expanduser().is_dir():
            raise DataError(f"hf:{name}: no folder at {Path(name).expanduser().absolute()}")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(f"hf:{name}: expected hf:OWNER/NAME, or hf:./FOLDER for a local folder")


def is_local(name: str) -> bool:
    """Whether the name is a path: it starts with `.`, `/` or `~`."""
    return name.startswith((".", "/", "~"))


def locate(name: str, options: Options) -> Located:
    """Load a data set's index through `datasets`, downloading it unless it is in its cache.

    Raises:
        DataError: if it cannot be had, with the reason in one sentence.
    """
    check_name(name)
    source = f"hf:{name}"
    splits = _load(source, name, options)
    identity = json.dumps([name, {s: [len(d), d._fingerprint] for s, d in splits.items()}])
    return Located(identity, lambda: _contents(source, splits, options))


def _load(source: str, name: str, options: Options) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source} needs the package datasets, which is not installed") from error
    path = str(Path(name).expanduser()) if is_local(name) else name
    with _offline_unless_reachable(datasets, is_local(name)) as offline, _quiet(datasets):
        try:
            loaded = datasets.load_dataset(path, options.config, revision=options.revision)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())
            if offline or isinstance(error, ConnectionError):
                raise DataError(
                    f"{source} is not in the local cache of datasets and its hub cannot be "
                    "reached: connect once, or use a local copy with hf:./FOLDER"
                ) from error
            raise DataError(f"{source} cannot be loaded: {reason}") from error
    return dict(loaded)


@contextlib.contextmanager
def _offline_unless_reachable(datasets: Any, local: bool) -> Iterator[bool]:
    """Switch `datasets` to its cache when the hub does not answer; yields whether it is offline.

    Behind a proxy the question cannot be answered from here and `datasets` finds out by itself.
    """
    config = datasets.config
    if local or config.HF_HUB_OFFLINE or urllib.request.getproxies():
        yield bool(config.HF_HUB_OFFLINE) and not local
        return
    address = urllib.parse.urlsplit(config.HF_ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((str(address.hostname), port), timeout=REACH_SECONDS).close()
        reachable = True
    except OSError:
        reachable = False
    config.HF_HUB_OFFLINE = not reachable
    try:
        yield not reachable
    finally:
        config.HF_HUB_OFFLINE = False


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars of `datasets` where its standard error is not a terminal's."""
    was_on = datasets.is_progress_bar_enabled()
    if not os.isatty(2):
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


def _contents(source: str, splits: dict[str, Any], options: Options) -> Contents:
    import datasets

    first = next(iter(splits.values()))
    kinds = {name: _kind(datasets, feature) for name, feature in first.features.items()}
    image, label = choose_columns(source, kinds, options)
    names = tuple(getattr(first.features[label], "names", ()))
    columns = {}
    for split, rows in splits.items():
        if label not in rows.column_names or image not in rows.column_names:
            continue  # an unlabelled extra split is of no use here
        columns[split] = np.asarray(rows.with_format("arrow")[label].to_numpy())
    numbers, names = class_numbers(source, columns, names)
    undecoded = {s: _undecoded(datasets, splits[s], image) for s in numbers}
    return Contents(
        {s: Samples(HubImages(source, undecoded[s], image), numbers[s]) for s in numbers}, names
    )


def _undecoded(datasets: Any, rows: Any, image: str) -> Any:
    rows = rows.select_columns([image])
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows


def _kind(datasets: Any, feature: Any) -> str:
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    dtype = str(getattr(feature, "dtype", ""))
    if "binary" in dtype:
        return "image"
    return "value" if "int" in dtype or "string" in dtype else "other"
