"""`synthetic:CxHxW`: images of a class-dependent pattern under noise, made of integers only.

Each class has a pattern of 4x4 grey blocks per channel; a sample is the mean of its class's
pattern and uniform noise, so it is easy to learn and the same bytes on every machine.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from normbench.data.errors import DataError
from normbench.data.options import Options

BLOCKS = 4
ROLES = ("train", "validation", "test")


def parse_shape(text: str) -> tuple[int, int, int]:
    """`3x32x32` as channels, height, width.

    Raises:
        DataError: if it is not such a shape.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise DataError(f"synthetic:{text}: expected synthetic:CxHxW, synthetic:3x32x32 say")
    channels, height, width = (int(group) for group in match.groups())
    if channels not in (1, 3) or max(height, width) > 4096:
        raise DataError(
            f"synthetic:{text}: expected 1 or 3 channels and at most 4096 pixels a side"
        )
    return channels, height, width


def make(text: str, options: Options) -> dict[str, NDArray[np.generic]]:
    """Arrays `train-images` (uint8 N,C,H,W), `train-labels` (int64 N) and so on.

    Raises:
        DataError: for a bad shape, or fewer samples than classes.
    """
    shape = parse_shape(text)
    if options.image_size is not None:
        shape = (shape[0], options.image_size, options.image_size)
    classes, samples = options.num_classes, options.samples
    if samples < classes:
        raise DataError(f"synthetic:{text}: {samples} samples are fewer than {classes} classes")
    blocks = _bytes((classes, shape[0], BLOCKS, BLOCKS), options.split_seed, 0)
    rows = np.arange(shape[1]) * BLOCKS // shape[1]
    columns = np.arange(shape[2]) * BLOCKS // shape[2]
    patterns = blocks[:, :, rows][:, :, :, columns]
    arrays: dict[str, NDArray[np.generic]] = {}
    for number, role in enumerate(ROLES, start=1):
        count = samples if role == "train" else max(classes, samples // 4)
        labels = np.arange(count, dtype=np.int64) % classes
        noise = _bytes((count, *shape), options.split_seed, number)
        # halves, so that the sum fits in a byte
        arrays[f"{role}-images"] = patterns[labels] // 2 + noise // 2
        arrays[f"{role}-labels"] = labels
    return arrays


def _bytes(shape: tuple[int, ...], *seed: int) -> NDArray[np.uint8]:
    """Uniform bytes of PCG64's raw stream, which no version of numpy changes."""
    size = int(np.prod(shape))
    raw = np.random.PCG64(list(seed)).random_raw(-(-size // 8))
    return np.ascontiguousarray(raw.astype("<u8")).view(np.uint8)[:size].reshape(shape)
