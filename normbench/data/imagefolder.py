"""`imagefolder:PATH`: a folder per class, under a folder per split or directly.

`PATH/train/cat/1.png`, `PATH/val/...`, `PATH/test/...`; or `PATH/cat/1.png`, split by seed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from normbench.data.contents import SPLIT_WORDS, Contents, FileImages, Located, Samples
from normbench.data.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"})


def find_folder(path: str) -> Path:
    """The folder that PATH means.

    Raises:
        DataError: if it is not there.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"imagefolder:{path}: no folder at {folder.absolute()}")
    return folder


def locate(path: str) -> Located:
    """Find the images of `imagefolder:PATH`.

    Raises:
        DataError: if there are none.
    """
    folder = find_folder(path)
    trees = {p.name: p for p in _folders(folder) if p.name.lower() in SPLIT_WORDS}
    found = {split: _images(tree) for split, tree in (trees or {"train": folder}).items()}
    if not any(found.values()):
        raise DataError(f"imagefolder:{path}: no images in class folders under {folder.absolute()}")
    files = [file for images in found.values() for _, file in images]
    stats = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return Located(json.dumps(stats), lambda: _contents(path, found))


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(tree: Path) -> list[tuple[str, Path]]:
    """Class name and file of each image below the tree's class folders, sorted."""
    return [
        (folder.name, file)
        for folder in _folders(tree)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]


def _contents(path: str, found: dict[str, list[tuple[str, Path]]]) -> Contents:
    known = sorted({name for images in found.values() for name, _ in images})
    number = {name: i for i, name in enumerate(known)}
    if len(known) < 2:
        raise DataError(f"imagefolder:{path}: only one class folder, {known[0]!r}; expected more")
    splits = {
        split: Samples(
            FileImages(tuple(file for _, file in images)),
            np.array([number[name] for name, _ in images], dtype=np.int64),
        )
        for split, images in found.items()
        if images
    }
    return Contents(splits, tuple(known))
