"""Splits held in memory: decoded once, moved to the device once, batched by indexing.

No DataLoader: at batch size 2 an epoch has thousands of steps, and a batch here costs two
`index_select` calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normbench.data.dataset import Batch, Split
from normbench.data.splits import permutation

FLOAT_LIMIT = 256 * 2**20
"""Bytes of float32 up to which a split is normalised once as a whole rather than per batch."""


@dataclass(frozen=True, eq=False)
class MemorySplit(Split):
    """Images uint8 N,C,H,W and how to normalise them: x / 255, minus mean, over std."""

    images: NDArray[np.uint8]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    _resident: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def _batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        device: torch.device | str | None,
        drop_last: bool,
    ) -> Iterator[Batch]:
        images, labels = self._on(device)
        order = torch.from_numpy(permutation(len(self), seed, epoch)).to(images.device)
        if drop_last:
            order = order[: len(self) // batch_size * batch_size]
        ready = images.dtype == torch.float32
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            batch = images.index_select(0, index)
            yield (batch if ready else self._normalised(batch)), labels.index_select(0, index)

    def _ordered(self, batch_size: int, device: torch.device | str | None) -> Iterator[Batch]:
        images, labels = self._on(device)
        ready = images.dtype == torch.float32
        for start in range(0, len(self), batch_size):
            batch = images[start : start + batch_size]
            target = labels[start : start + batch_size]
            yield (batch if ready else self._normalised(batch)), target

    def _on(self, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
        """All images and labels on the device; moved there at the first call."""
        where = self.device if device is None else torch.device(device)
        if where not in self._resident:
            images = torch.from_numpy(self.images).to(where)
            if images.numel() * 4 <= FLOAT_LIMIT:
                images = self._normalised(images)
            self._resident[where] = images, self.labels.to(where)
        return self._resident[where]

    def _normalised(self, images: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return images.to(torch.float32).div_(255.0).sub_(mean).div_(std)


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in units of 0..1, exact in integers.

    Exact, so that two machines normalise by the same numbers whatever their thread count. A
    constant channel gets standard deviation 1.

    Args:
        images: uint8 N,C,H,W.
    """
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for chunk in np.array_split(images, max(1, images.nbytes // 2**24)):
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    values = np.arange(256)
    total = images.shape[0] * images.shape[2] * images.shape[3]
    sums, squares = counts @ values, counts @ values**2
    means = [float(s) / total / 255 for s in sums]
    variances = [
        float(int(q) * total - int(s) ** 2) / total**2 / 255**2
        for s, q in zip(sums, squares, strict=True)
    ]
    return tuple(means), tuple(v**0.5 if v > 0 else 1.0 for v in variances)
