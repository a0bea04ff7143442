"""Who goes into which split: seeded, stratified, and never the same image on both sides.

All randomness here is the raw 64-bit stream of PCG64, which numpy guarantees never to change, so
the same seed gives the same split with any version of numpy or torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def permutation(n: int, *seed: int) -> Indices:
    """The permutation of 0..n-1 that belongs to `seed`, one or more non-negative integers."""
    keys = np.random.PCG64(list(seed)).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64)


def stratified_order(labels: Indices, seed: int) -> Indices:
    """A shuffled order of the samples in which every prefix has the class shares of the whole.

    The k-th of a class's n samples is placed at (k + u)/n, with u drawn once per class, so a
    prefix of length m holds within one of m·n/N of them, and smaller prefixes nest in larger ones.

    Args:
        labels: N class numbers.
        seed: non-negative.
    """
    n = len(labels)
    shuffled = permutation(n, seed)
    _, ordinal, counts = np.unique(labels, return_inverse=True, return_counts=True)
    offset = np.random.PCG64([seed, 1]).random_raw(len(counts)) / 2.0**64
    by_class = shuffled[np.argsort(ordinal[shuffled], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.arange(n) - np.repeat(starts, counts)
    place = (rank + np.repeat(offset, counts)) / np.repeat(counts, counts)
    return by_class[np.argsort(place, kind="stable")]


def carve(
    labels: Indices, fraction: float, seed: int, groups: Indices | None = None
) -> tuple[Indices, Indices]:
    """Split samples into the kept and the carved, stratified by class.

    Args:
        labels: N class numbers.
        fraction: share to carve, between 0 and 1; at least one sample is.
        seed: non-negative.
        groups: N numbers, equal for identical images, which then go to the same side.

    Returns:
        Sorted indices of the kept and of the carved samples.
    """
    n = len(labels)
    groups = np.arange(n) if groups is None else groups
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)  # so that the groups' values do not matter
    first, group = first[by_appearance], np.argsort(by_appearance)[group]
    order = stratified_order(labels[first], seed)
    carved_groups = np.zeros(len(first), dtype=bool)
    carved_groups[order[: max(1, round(fraction * len(first)))]] = True
    carved = carved_groups[group]
    return np.flatnonzero(~carved), np.flatnonzero(carved)
