"""From a source's own splits to training, validation and test, carving what it does not have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normbench.data.contents import SPLIT_WORDS
from normbench.data.errors import DataError
from normbench.data.options import Options
from normbench.data.splits import carve, stratified_order
from normbench.registry import nearest

ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class Plan:
    """Where each role's samples come from.

    Attributes:
        given: role to the name of one of the source's splits.
        carved: roles taken out of the training split, in this order.
    """

    given: Mapping[str, str]
    carved: tuple[str, ...]


def plan(source: str, names: Sequence[str], options: Options) -> Plan:
    """Decide which split plays which role.

    A source without test split reports on its validation split, and validation is carved from
    training; one with a single split has both carved. A validation split that the user named stays
    validation: then the test split is carved.

    Raises:
        DataError: naming the splits there are, if one asked for is missing or none is training.
    """
    there = f"its splits are {', '.join(names) or 'empty'}"
    asked = {role: getattr(options, f"{role}_split") for role in ROLES}
    given: dict[str, str] = {}
    for role, name in asked.items():
        if name is not None and name not in names:
            raise DataError(f"{source} has no split {name!r}; {nearest(name, names)} ({there})")
        matching = [n for n in names if SPLIT_WORDS.get(n.lower()) == role]
        if found := [name] if name is not None else matching:
            given[role] = found[0]
    if "train" not in given and len(names) == 1:
        given = {"train": names[0]}
    if "train" not in given:
        raise DataError(f"{source} has no training split; {there}; name one as train_split")
    chosen = asked["test"] or asked["validation"]
    if chosen is None and "test" not in given and "validation" in given:
        given["test"] = given.pop("validation")
    if len(set(given.values())) < len(given):
        raise DataError(f"{source}: one split is asked to play two roles: {given}")
    return Plan(given, tuple(role for role in ("test", "validation") if role not in given))


def carve_roles(
    labels: NDArray[np.int64],
    carved: Sequence[str],
    options: Options,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Indices into the training split for `train` and each role carved out of it.

    Args:
        labels: of the training split.
        carved: roles to take out.
        options: fractions and `split_seed`.
        groups: equal numbers for identical images, which stay together.
    """
    rest = np.arange(len(labels))
    out: dict[str, NDArray[np.int64]] = {}
    for role in carved:
        fraction = options.test_fraction if role == "test" else options.validation_fraction
        within = None if groups is None else groups[rest]
        kept, taken = carve(labels[rest], fraction, options.split_seed, within)
        out[role], rest = rest[taken], rest[kept]
    return {**out, "train": rest}


def train_subset(
    source: str, labels: NDArray[np.int64], options: Options
) -> NDArray[np.int64] | None:
    """Sorted indices of the `train_samples` to use; None for all.

    Raises:
        DataError: if there are fewer.
    """
    wanted = options.train_samples
    if wanted is None:
        return None
    if wanted > len(labels):
        raise DataError(f"train_samples is {wanted}, but {source} has {len(labels)}")
    return np.sort(stratified_order(labels, options.split_seed)[:wanted])


def identical(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """One number per image, equal for images of equal pixels."""
    hashes = b"".join(hashlib.blake2b(image, digest_size=8).digest() for image in images)
    return np.frombuffer(hashes, dtype="<i8").astype(np.int64)
