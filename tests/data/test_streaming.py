from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from normbench.data import DataError, Dataset, load


@pytest.fixture
def streamed(cifar_like: Path) -> Dataset:
    return load(f"parquet:{cifar_like}", streaming=True, image_size=12)


def first_epoch(data: Dataset, **options: int) -> torch.Tensor:
    return torch.cat([i for i, _ in data.train.batches(10, seed=0, epoch=0, **options)])


def test_streaming_equals_memory(cifar_like: Path, streamed: Dataset) -> None:
    memory = load(f"parquet:{cifar_like}", image_size=12)
    assert streamed.streamed
    assert not memory.streamed
    torch.testing.assert_close(first_epoch(streamed), first_epoch(memory), rtol=0, atol=1e-5)
    for ours, theirs in ((streamed.validation, memory.validation), (streamed.test, memory.test)):
        torch.testing.assert_close(
            next(ours.ordered(99)), next(theirs.ordered(99)), rtol=0, atol=1e-5
        )


def test_sets_beyond_the_limit_stream(cifar_like: Path) -> None:
    assert load(f"parquet:{cifar_like}", image_size=8, memory_limit_mb=0.01).streamed


def test_augmentation_streams_and_leaves_evaluation_alone(
    cifar_like: Path, streamed: Dataset
) -> None:
    augmented = load(f"parquet:{cifar_like}", augment=True, image_size=12)
    assert augmented.streamed
    assert not torch.equal(first_epoch(augmented), first_epoch(streamed))
    assert torch.equal(next(augmented.test.ordered(99))[0], next(streamed.test.ordered(99))[0])


def test_augmentation_depends_on_seed_and_epoch_alone(cifar_like: Path) -> None:
    epochs = []
    for state in (1, 2):
        torch.manual_seed(state)
        random.seed(state)
        data = load(f"parquet:{cifar_like}", augment=True, image_size=12)
        epochs.append(first_epoch(data))
    assert torch.equal(*epochs)
    (later, _) = next(data.train.batches(72, seed=0, epoch=1))
    assert not torch.equal(later.sort(0).values, epochs[0][:72].sort(0).values)


@pytest.mark.filterwarnings(
    # Python 3.12 and later warn of fork with threads; torch's loader forks after its own began
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
def test_worker_processes_change_nothing(cifar_like: Path) -> None:
    alone, helped = (
        load(f"parquet:{cifar_like}", augment=True, image_size=12, workers=n) for n in (0, 2)
    )
    assert torch.equal(first_epoch(alone), first_epoch(helped))


def test_the_global_generators_are_left_alone(streamed: Dataset) -> None:
    torch.manual_seed(0)
    expected = torch.random.get_rng_state(), random.getstate()
    first_epoch(streamed)
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]


def test_partial_batches(streamed: Dataset) -> None:
    sizes = [len(labels) for _, labels in streamed.train.batches(10, seed=0, epoch=0)]
    assert sizes == [10] * 7
    assert [len(labels) for _, labels in streamed.train.ordered(10)][-1] == 2


def test_a_batch_larger_than_the_split_is_refused(streamed: Dataset) -> None:
    with pytest.raises(DataError, match="batch of 73 is larger than the 72 training samples"):
        streamed.train.batches(73, seed=0, epoch=0)


def test_fingerprints_repeat_and_tell_subsets_apart(cifar_like: Path, streamed: Dataset) -> None:
    source, options = f"parquet:{cifar_like}", {"streaming": True, "image_size": 12}
    assert load(source, **options).fingerprint == streamed.fingerprint
    subset = load(source, train_samples=40, **options)
    assert len(subset.train) == 40
    assert subset.fingerprint != streamed.fingerprint


def test_a_streamed_set_needs_image_size(cifar_like: Path) -> None:
    with pytest.raises(DataError, match="is streamed; give image_size"):
        load(f"parquet:{cifar_like}", streaming=True)
