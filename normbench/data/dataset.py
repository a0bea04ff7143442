"""What a loaded data set offers: three splits that yield normalised batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from normbench.data.errors import DataError

Batch = tuple[Tensor, Tensor]
"""Images float32 N,C,H,W with the training split's mean 0 and variance 1 per channel; labels
int64 N."""


@dataclass(frozen=True, eq=False)
class Split(ABC):
    """The samples of one split.

    Attributes:
        source: the data set's name, for errors.
        role: `training`, `validation` or `test`, for errors.
        labels: int64 N class numbers, on the CPU.
    """

    source: str
    role: str
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        device: torch.device | str | None = None,
        drop_last: bool = True,
    ) -> Iterator[Batch]:
        """One pass in the order that (seed, epoch) decides, the same on every device.

        Args:
            batch_size: samples in a batch.
            seed: the run's seed.
            epoch: number of this pass, from 0.
            device: where the batches go; None is the device the data set was loaded for.
            drop_last: leave out the last batch if it is not full.

        Raises:
            DataError: for a batch of less than one sample, or of more than there are if the last
                is dropped: at once, not at the first batch.
        """
        self._check(batch_size)
        if drop_last and batch_size > len(self):
            raise DataError(
                f"batch of {batch_size} is larger than the {len(self)} {self.role} samples of "
                f"{self.source}"
            )
        return self._batches(batch_size, seed, epoch, device, drop_last)

    def ordered(
        self, batch_size: int, *, device: torch.device | str | None = None
    ) -> Iterator[Batch]:
        """One pass over all samples in their own order, without augmentation.

        Raises:
            DataError: for a batch of less than one sample.
        """
        self._check(batch_size)
        return self._ordered(batch_size, device)

    def _check(self, batch_size: int) -> None:
        if batch_size < 1:
            raise DataError(f"batch of {batch_size} for {self.source}; expected at least 1 sample")

    @abstractmethod
    def _batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        device: torch.device | str | None,
        drop_last: bool,
    ) -> Iterator[Batch]: ...

    @abstractmethod
    def _ordered(self, batch_size: int, device: torch.device | str | None) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Dataset:
    """Three splits without a common sample, and what is known about them.

    Attributes:
        name: the source string.
        fingerprint: hash of the samples in use: of all pixels and labels in memory; where the set
            is streamed, of all labels and of the encoded images the statistics were taken from.
        num_classes: number of classes.
        channels: 1 or 3.
        image_size: height and width in pixels.
        train: for gradients.
        validation: for tuning.
        test: for reports.
        mean: per channel, of the training split before `train_samples`, in units of 0..1.
        std: likewise.
        class_names: empty where the source has none.
        streamed: whether images are read while training.
    """

    name: str
    fingerprint: str
    num_classes: int
    channels: int
    image_size: tuple[int, int]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    streamed: bool = False
