"""`load`: a source string and options to three splits of tensors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normbench.cells import digest
from normbench.data import cache, synthetic
from normbench.data.contents import Contents, Samples
from normbench.data.dataset import Dataset
from normbench.data.decode import Format, choose_format, decode_all
from normbench.data.errors import DataError
from normbench.data.memory import MemorySplit, channel_statistics
from normbench.data.options import Options
from normbench.data.roles import ROLES, Plan, carve_roles, identical, plan, train_subset
from normbench.data.sources import locate, split_source
from normbench.data.splits import stratified_order

ROLE_WORDS = {"train": "training", "validation": "validation", "test": "test"}
STATISTICS_SAMPLES = 1000
"""Training images of a streamed set that its mean and standard deviation are taken from."""

AFTER_DECODING = frozenset({"train_samples", "streaming", "memory_limit_mb", "augment", "workers"})
"""Options that do not change what is decoded, and so not the cache's key."""

Arrays = Mapping[str, NDArray[Any]]


def load(source: str, *, device: torch.device | str = "cpu", **options: Any) -> Dataset:
    """Load a data set: `load("embedded:mnist", train_samples=1000)`.

    Small sets are decoded once, cached on disk and held in memory; larger ones stream. Splits
    depend on `split_seed` alone, never on a run's seed, so that paired runs see the same data.

    Args:
        source: `embedded:NAME`, `hf:OWNER/NAME`, `parquet:PATH`, `imagefolder:PATH` or
            `synthetic:CxHxW`; relative paths start at the current folder.
        device: where batches go unless told otherwise.
        options: see `normbench.data.options.Options`.

    Raises:
        DataError: if the source or an option is wrong, or the data cannot be used.
    """
    scheme, rest = split_source(source)
    chosen = Options.parse(source, scheme, options)
    where = torch.device(device)
    if scheme == "synthetic":
        arrays = synthetic.make(rest, chosen)
        return _in_memory(source, arrays, _facts(arrays, chosen.num_classes, ()), chosen, where)
    located = locate(scheme, rest, chosen)
    decoding = {
        k: v for k, v in dataclasses.asdict(chosen).items() if k not in AFTER_DECODING
    }  # fmt: skip
    key = digest([cache.FORMAT, located.identity, decoding])
    may_hold = not (chosen.streaming or chosen.augment)
    if may_hold and (hit := cache.read(key)) is not None and _fits(chosen, _image_bytes(hit[0])):
        return _in_memory(source, *hit, chosen, where)
    contents = located.read()
    roles = plan(source, tuple(contents.splits), chosen)
    first = contents.splits[roles.given["train"]].images
    into = choose_format(source, first, chosen.image_size, chosen.channels)
    used = sum(len(contents.splits[name].labels) for name in roles.given.values())
    size = used * into.channels * into.height * into.width
    if not may_hold or not _fits(chosen, size):
        return _streamed(source, contents, roles, into, chosen, where, key)
    arrays = _decoded(source, contents, roles, into, chosen)
    facts = _facts(arrays, _num_classes(contents), contents.class_names)
    cache.write(key, arrays, facts)
    return _in_memory(source, arrays, facts, chosen, where)


def _fits(options: Options, size: int) -> bool:
    return options.streaming is False or size <= options.memory_limit_mb * 2**20


def _image_bytes(arrays: Arrays) -> int:
    return sum(arrays[f"{role}-images"].nbytes for role in ROLES)


def _num_classes(contents: Contents) -> int:
    most = max(int(samples.labels.max()) for samples in contents.splits.values())
    return len(contents.class_names) or most + 1


def _decoded(
    source: str, contents: Contents, roles: Plan, into: Format, options: Options
) -> dict[str, NDArray[Any]]:
    """`train-images`, `train-labels` and so on; identical images are carved to the same side."""
    arrays: dict[str, NDArray[Any]] = {}
    asked = options.channels is not None
    for role, name in roles.given.items():
        samples = contents.splits[name]
        arrays[f"{role}-images"] = decode_all(f"{source} ({name})", samples.images, into, asked)
        arrays[f"{role}-labels"] = samples.labels
    if roles.carved:
        images, labels = arrays["train-images"], arrays["train-labels"]
        parts = carve_roles(labels, roles.carved, options, identical(images))
        for role, index in parts.items():
            arrays[f"{role}-images"] = images[index]
            arrays[f"{role}-labels"] = labels[index]
    _refuse_empty(source, {role: len(arrays[f"{role}-labels"]) for role in ROLES})
    return arrays


def _refuse_empty(source: str, sizes: Mapping[str, int]) -> None:
    for role, size in sizes.items():
        if not size:
            raise DataError(f"{source}: no sample is left for the {ROLE_WORDS[role]} split")


def _facts(arrays: Arrays, num_classes: int, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What is worth keeping beside the arrays: their hash, statistics and classes."""
    content = hashlib.sha256()
    for name in sorted(arrays):
        content.update(f"{name} {arrays[name].shape}".encode())
        content.update(np.ascontiguousarray(arrays[name]).data)
    mean, std = channel_statistics(arrays["train-images"])
    return {
        "sha256": content.hexdigest(),
        "mean": mean,
        "std": std,
        "num_classes": num_classes,
        "class_names": class_names,
    }


def _in_memory(
    source: str, arrays: Arrays, facts: Mapping[str, Any], options: Options, device: torch.device
) -> Dataset:
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    fingerprint = facts["sha256"][:16]
    chosen = train_subset(source, arrays["train-labels"], options)
    if chosen is not None:
        fingerprint = digest([fingerprint, options.train_samples, options.split_seed])
    splits: dict[str, MemorySplit] = {}
    for role in ROLES:
        images, labels = arrays[f"{role}-images"], arrays[f"{role}-labels"]
        if role == "train" and chosen is not None:
            images, labels = images[chosen], labels[chosen]
        splits[role] = MemorySplit(
            source, ROLE_WORDS[role], torch.from_numpy(labels.astype(np.int64)),
            images, mean, std, device,
        )  # fmt: skip
    _, channels, height, width = arrays["train-images"].shape
    return Dataset(
        source, fingerprint, facts["num_classes"], channels, (height, width),
        splits["train"], splits["validation"], splits["test"],
        mean, std, tuple(facts["class_names"]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Picked:
    """Some of a split's encoded images."""

    samples: Samples
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> bytes:
        return self.samples.images[int(self.indices[index])]


def _streamed(
    source: str,
    contents: Contents,
    roles: Plan,
    into: Format,
    options: Options,
    device: torch.device,
    key: str,
) -> Dataset:
    from normbench.data.streaming import StreamSplit, transforms

    if options.image_size is None:
        raise DataError(f"{source} is streamed; give image_size, the side to resize to in pixels")
    base = contents.splits[roles.given["train"]]
    indices = {role: np.arange(len(contents.splits[n].labels)) for role, n in roles.given.items()}
    indices |= carve_roles(base.labels, roles.carved, options)
    _refuse_empty(source, {role: len(index) for role, index in indices.items()})
    facts = _stream_facts(source, base, indices["train"], into, options, f"{key}-stream")
    chosen = train_subset(source, base.labels[indices["train"]], options)
    if chosen is not None:
        indices["train"] = indices["train"][chosen]
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    train_transform, eval_transform = transforms(into, mean, std, options.augment)
    splits, labels = {}, {}
    for role in ROLES:
        samples = contents.splits[roles.given.get(role, roles.given["train"])]
        labels[role] = samples.labels[indices[role]]
        splits[role] = StreamSplit(
            source, ROLE_WORDS[role], torch.from_numpy(labels[role]), samples, indices[role],
            into, options.channels is not None,
            train_transform if role == "train" else eval_transform, eval_transform,
            options.workers, device,
        )  # fmt: skip
    hashes = [hashlib.sha256(labels[role].tobytes()).hexdigest() for role in ROLES]
    return Dataset(
        source, digest([facts["sha256"], hashes, options.image_size, options.augment]),
        _num_classes(contents), into.channels, (into.height, into.width),
        splits["train"], splits["validation"], splits["test"],
        mean, std, contents.class_names, streamed=True,
    )  # fmt: skip


def _stream_facts(
    source: str,
    samples: Samples,
    train: NDArray[np.int64],
    into: Format,
    options: Options,
    key: str,
) -> dict[str, Any]:
    """Statistics and hash of a stratified sample of the training images, cached."""
    if (hit := cache.read(key)) is not None:
        return hit[1]
    order = stratified_order(samples.labels[train], options.split_seed)[:STATISTICS_SAMPLES]
    picked = _Picked(samples, train[order])
    mean, std = channel_statistics(decode_all(source, picked, into, options.channels is not None))
    content = hashlib.sha256()
    for index in range(len(picked)):
        content.update(picked[index])
    facts = {"sha256": content.hexdigest(), "mean": mean, "std": std}
    cache.write(key, {}, facts)
    return facts
