"""What every source yields before anything is decoded: splits of encoded images with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from normbench.data.errors import DataError
from normbench.data.options import Options
from normbench.registry import nearest

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
"""Words in a file's, a folder's or a split's name, and the role they mean."""


class Images(Protocol):
    """A sequence of encoded images (PNG, JPEG, WebP ...)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> bytes: ...


@dataclass(frozen=True)
class Samples:
    """Encoded images with their int64 class numbers."""

    images: Images
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Contents:
    """A source's own splits, by their own names, and its classes where it names them."""

    splits: Mapping[str, Samples]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Located:
    """A source that was found but not yet read.

    Attributes:
        identity: changes when the data do, and is cheap: names, sizes, times, checksums.
        read: reads labels, and makes images readable one by one.
    """

    identity: str
    read: Callable[[], Contents]


@dataclass(frozen=True)
class FileImages:
    """Images that are files of their own."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> bytes:
        return self.paths[index].read_bytes()


def class_numbers(
    source: str, columns: Mapping[str, Any], names: tuple[str, ...]
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Label columns of all splits as int64 class numbers; words are numbered alphabetically.

    A split of which every label is -1, as the Hub marks hidden labels, is left out.

    Raises:
        DataError: if a label is missing or negative, or has no name.
    """
    raw = {split: np.asarray(values) for split, values in columns.items()}
    if any(values.dtype.kind not in "iu" for values in raw.values()):
        for split, values in raw.items():
            if any(not isinstance(value, str) for value in values.tolist()):
                raise DataError(f"{source}: a label of split {split!r} is neither number nor word")
        names = tuple(sorted({str(value) for values in raw.values() for value in values}))
        number = {name: i for i, name in enumerate(names)}
        raw = {s: np.array([number[str(v)] for v in vs]) for s, vs in raw.items()}
    numbers = {s: v.astype(np.int64) for s, v in raw.items() if len(v) and not (v == -1).all()}
    for split, values in numbers.items():
        if values.min() < 0 or (names and values.max() >= len(names)):
            worst = values.min() if values.min() < 0 else values.max()
            expected = f"0 to {len(names) - 1}" if names else "0 or more"
            raise DataError(f"{source}: split {split!r} has label {worst}; expected {expected}")
    return numbers, names


IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


def choose_columns(source: str, kinds: Mapping[str, str], options: Options) -> tuple[str, str]:
    """Which columns hold images and labels.

    By type first, then by usual name where several have the type; options override both.

    Args:
        source: for errors.
        kinds: column name to `image`, `class`, `value` (integers or words) or `other`.
        options: `image_column` and `label_column`.

    Raises:
        DataError: naming the columns there are, if none or several could be meant.
    """
    of_kind: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        of_kind.setdefault(kind, []).append(name)
    classes = of_kind.get("class", [])
    usual = [name for name in of_kind.get("value", []) if name in LABEL_NAMES]
    image = _one(source, "image", options.image_column, of_kind.get("image", []), kinds)
    label = _one(source, "label", options.label_column, classes or usual, kinds)
    return image, label


def _one(
    source: str, role: str, given: str | None, candidates: list[str], kinds: Mapping[str, str]
) -> str:
    there = f"its columns are {', '.join(kinds)}"
    if given is not None:
        if given not in kinds:
            hint = nearest(given, kinds)
            raise DataError(f"{source} has no column {given!r} for the {role}; {hint} ({there})")
        return given
    preferred = [n for n in (IMAGE_NAMES if role == "image" else LABEL_NAMES) if n in candidates]
    if preferred or len(candidates) == 1:
        return (preferred or candidates)[0]
    found = "several columns could be" if candidates else "no column is"
    raise DataError(f"{source}: {found} the {role}; {there}; name one as {role}_column")
