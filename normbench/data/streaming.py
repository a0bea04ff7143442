"""Splits too large for memory: a DataLoader with timm's transforms, seeded sample by sample.

What happens to a sample depends on (seed, epoch, its number) alone: not on the batch size, nor on
how many worker processes there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from normbench.data.contents import Samples
from normbench.data.dataset import Batch, Split
from normbench.data.decode import Format, convert, open_image
from normbench.data.splits import permutation

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class StreamSplit(Split):
    """Samples read while training.

    Attributes:
        samples: the source's split.
        indices: which of its samples are in this one.
        into: channels and size.
        channels_asked: whether the user chose the number of channels.
        train_transform: for `batches`; for validation and test the same as the next.
        eval_transform: for `ordered`.
        workers: loader processes.
        device: where batches go unless told otherwise.
    """

    samples: Samples
    indices: NDArray[np.int64]
    into: Format
    channels_asked: bool
    train_transform: Transform
    eval_transform: Transform
    workers: int
    device: torch.device

    def _batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        device: torch.device | str | None,
        drop_last: bool,
    ) -> Iterator[Batch]:
        order = permutation(len(self), seed, epoch)
        if drop_last:
            order = order[: len(self) // batch_size * batch_size]
        seeds = np.random.PCG64([seed, epoch, 1]).random_raw(len(self))
        items = [(int(i), int(seeds[i])) for i in order]
        return self._loaded(self.train_transform, items, batch_size, device)

    def _ordered(self, batch_size: int, device: torch.device | str | None) -> Iterator[Batch]:
        items = [(i, i) for i in range(len(self))]
        return self._loaded(self.eval_transform, items, batch_size, device)

    def _loaded(
        self,
        transform: Transform,
        items: list[tuple[int, int]],
        batch_size: int,
        device: torch.device | str | None,
    ) -> Iterator[Batch]:
        where = self.device if device is None else torch.device(device)
        loader = DataLoader(
            _Transformed(self, transform),
            batch_size=batch_size,
            sampler=items,
            num_workers=self.workers,
            pin_memory=where.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # else it draws from the global stream
        )
        for images, labels in loader:
            yield images.to(where, non_blocking=True), labels.to(where, non_blocking=True)


class _Transformed(TorchDataset[tuple[Tensor, int]]):
    def __init__(self, split: StreamSplit, transform: Transform) -> None:
        self.split = split
        self.transform = transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        number, seed = item
        split = self.split
        index = int(split.indices[number])
        image = open_image(split.source, split.samples.images, index)
        image = convert(split.source, image, index, split.into.channels, split.channels_asked)
        state = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):  # timm draws from both global streams
                torch.default_generator.manual_seed(seed % 2**63)
                random.seed(seed)
                return self.transform(image), int(split.labels[number])
        finally:
            random.setstate(state)


def transforms(
    into: Format, mean: tuple[float, ...], std: tuple[float, ...], augment: bool
) -> tuple[Transform, Transform]:
    """Transforms of timm for training and evaluation; without augmentation they are the same."""
    from timm.data.transforms_factory import create_transform

    shape = (into.channels, into.height, into.width)
    common: dict[str, Any] = {
        "input_size": shape, "mean": mean, "std": std, "interpolation": "bilinear",
    }  # fmt: skip
    evaluation: Transform = create_transform(**common, is_training=False, crop_pct=1.0)
    if not augment:
        return evaluation, evaluation
    return create_transform(**common, is_training=True), evaluation
