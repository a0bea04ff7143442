from __future__ import annotations

from pathlib import Path

import pytest
from made_images import labels_of, pixels, write_parquet


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NORMBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def cifar_like(tmp_path: Path) -> Path:
    """A folder with CIFAR-10's schema: img, label; train and test files, 8x8 colour images."""
    folder = tmp_path / "cifar"
    features = {
        "img": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["plane", "car", "bird", "cat"]},
    }
    for split, count, seed in (("train", 80, 1), ("test", 20, 2)):
        path = folder / f"{split}-00000-of-00001.parquet"
        write_parquet(path, list(pixels(count, seed)), labels_of(count), features=features)
    return folder
