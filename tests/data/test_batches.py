from __future__ import annotations

import pytest
import torch

from normbench.data import DataError, Dataset, load

SOURCE = "synthetic:1x8x8"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(SOURCE, samples=103, num_classes=5)


def test_all_samples_come_once_in_training(dataset: Dataset) -> None:
    order = [i for i, _ in dataset.train.batches(10, seed=0, epoch=0, drop_last=False)]
    assert torch.cat(order).unique(dim=0).shape[0] == 103


def test_the_partial_batch_is_dropped_in_training(dataset: Dataset) -> None:
    sizes = [len(labels) for _, labels in dataset.train.batches(10, seed=0, epoch=0)]
    assert sizes == [10] * 10


def test_the_partial_batch_is_kept_if_asked(dataset: Dataset) -> None:
    batches = dataset.train.batches(10, seed=0, epoch=0, drop_last=False)
    assert [len(labels) for _, labels in batches] == [10] * 10 + [3]


def test_evaluation_keeps_the_partial_batch_and_the_order(dataset: Dataset) -> None:
    labels = [labels for _, labels in dataset.train.ordered(10)]
    assert len(labels[-1]) == 3
    assert torch.equal(torch.cat(labels), dataset.train.labels)


def test_types_and_shapes(dataset: Dataset) -> None:
    images, labels = next(dataset.train.batches(4, seed=0, epoch=0))
    assert (images.dtype, images.shape) == (torch.float32, (4, 1, 8, 8))
    assert (labels.dtype, labels.shape) == (torch.int64, (4,))


def test_training_images_have_mean_0_and_variance_1(dataset: Dataset) -> None:
    images, _ = next(dataset.train.ordered(103))
    assert images.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert images.double().var(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}])
def test_order_depends_on_seed_and_epoch(dataset: Dataset, other: dict[str, int]) -> None:
    first, _ = next(dataset.train.batches(50, seed=0, epoch=0))
    second, _ = next(dataset.train.batches(50, **other))
    assert not torch.equal(first, second)


def test_equal_seeds_give_equal_batches_whatever_the_global_generator() -> None:
    runs = []
    for state in (1, 2):
        torch.manual_seed(state)
        train = load(SOURCE, samples=50).train
        runs.append(torch.cat([i for i, _ in train.batches(7, seed=3, epoch=2)]))
    assert torch.equal(*runs)


def test_loading_and_batching_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.random.get_rng_state()
    list(load(SOURCE, samples=20).train.batches(4, seed=0, epoch=0))
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_splits_too_large_for_float_are_normalised_alike(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.cat([i for i, _ in dataset.train.batches(10, seed=0, epoch=0)])
    monkeypatch.setattr("normbench.data.memory.FLOAT_LIMIT", 0)
    train = load(SOURCE, samples=103, num_classes=5).train
    assert torch.equal(torch.cat([i for i, _ in train.batches(10, seed=0, epoch=0)]), whole)
    assert torch.equal(next(train.ordered(103))[0], next(dataset.train.ordered(103))[0])


def test_a_batch_larger_than_the_split_is_refused_at_once(dataset: Dataset) -> None:
    with pytest.raises(
        DataError,
        match="batch of 512 is larger than the 103 training samples of synthetic:1x8x8",
    ):
        dataset.train.batches(512, seed=0, epoch=0)


def test_a_batch_of_nothing_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="batch of 0"):
        dataset.train.ordered(0)


def test_evaluation_takes_batches_larger_than_the_split(dataset: Dataset) -> None:
    assert [len(labels) for _, labels in dataset.test.ordered(10_000)] == [len(dataset.test)]


def test_synthetic_data_can_be_learnt() -> None:
    data = load("synthetic:3x16x16", samples=400, num_classes=10)
    images, labels = next(data.train.ordered(400))
    centres = torch.stack([images[labels == c].mean(0).flatten() for c in range(10)])
    test, truth = next(data.test.ordered(400))
    assert (torch.cdist(test.flatten(1), centres).argmin(1) == truth).float().mean() > 0.95


def test_synthetic_splits_share_no_image() -> None:
    data = load(SOURCE, samples=40)
    parts = [next(s.ordered(1000))[0] for s in (data.train, data.validation, data.test)]
    together = torch.cat(parts)
    assert together.unique(dim=0).shape[0] == len(together)


def test_the_fingerprint_tells_data_apart() -> None:
    same = {load(SOURCE).fingerprint, load(SOURCE).fingerprint}
    others = {load(SOURCE, split_seed=1).fingerprint, load(SOURCE, train_samples=10).fingerprint}
    assert len(same) == 1
    assert len(same | others) == 3


def test_a_subset_is_stratified_and_nests() -> None:
    small = load(SOURCE, train_samples=30, num_classes=5, samples=100)
    large = load(SOURCE, train_samples=60, num_classes=5, samples=100)
    assert torch.bincount(small.train.labels).tolist() == [6] * 5
    both = torch.cat([next(d.train.ordered(100))[0] for d in (small, large)])
    assert both.unique(dim=0).shape[0] == 60
