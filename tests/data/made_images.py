"""Random images in the shapes that sources have them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def pixels(count: int, seed: int, channels: int = 3, size: int = 8) -> np.ndarray:
    """Random images N,H,W,C (N,H,W for one channel)."""
    shape = (count, size, size, channels) if channels > 1 else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    *,
    image: str = "img",
    label: str = "label",
    features: dict[str, object] | None = None,
    extra: dict[str, list[object]] | None = None,
) -> Path:
    """A file as the Hub has it: struct {bytes, path} and labels, with or without metadata."""
    rows = [{"bytes": png(i), "path": f"{n}.png"} for n, i in enumerate(images)]
    table = pa.table({image: rows, **(extra or {}), label: pa.array(labels)})
    if features is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def labels_of(count: int, classes: int = 4) -> list[int]:
    return [i % classes for i in range(count)]
