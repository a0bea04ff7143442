from __future__ import annotations

import numpy as np
import pytest

from normbench.data.splits import carve, permutation, stratified_order


def test_permutation_is_one_and_depends_on_every_seed() -> None:
    orders = [permutation(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 4


def test_permutation_is_frozen() -> None:
    # a change here changes the data order of every cell ever measured
    assert permutation(8, 3, 1).tolist() == [0, 6, 2, 1, 3, 7, 4, 5]


@pytest.mark.parametrize("size", [10, 37, 100, 500])
def test_every_prefix_has_the_shares_of_the_whole(size: int) -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    counts = np.bincount(labels[stratified_order(labels, 0)[:size]], minlength=3)
    assert np.all(np.abs(counts - size * np.array([0.6, 0.3, 0.1])) <= 1)


def test_stratified_order_is_a_permutation_that_mixes_within_classes() -> None:
    labels = np.arange(100) % 2
    order = stratified_order(labels, 1)
    assert np.array_equal(np.sort(order), np.arange(100))
    evens = order[labels[order] == 0]
    assert not np.array_equal(evens, np.sort(evens))


def test_carve_is_disjoint_and_complete() -> None:
    kept, carved = carve(np.arange(200) % 5, 0.1, 0)
    assert np.array_equal(np.sort(np.concatenate([kept, carved])), np.arange(200))
    assert np.bincount(np.arange(200)[carved] % 5).tolist() == [4] * 5


def test_carve_keeps_identical_images_on_one_side() -> None:
    groups = np.arange(300) // 3
    kept, carved = carve(np.zeros(300, dtype=np.int64), 0.3, 0, groups)
    assert not set(groups[kept]) & set(groups[carved])
    assert len(carved) == 90


def test_another_seed_carves_others() -> None:
    labels = np.arange(200) % 5
    assert not np.array_equal(carve(labels, 0.2, 0)[1], carve(labels, 0.2, 1)[1])


def test_the_values_of_groups_do_not_matter() -> None:
    labels = np.arange(200) % 5
    groups = permutation(200, 9)
    assert np.array_equal(carve(labels, 0.2, 0)[1], carve(labels, 0.2, 0, groups)[1])


def test_at_least_one_sample_is_carved() -> None:
    assert len(carve(np.zeros(4, dtype=np.int64), 0.01, 0)[1]) == 1
