"""Memory that is kept costs no page faults, whatever the allocator did before."""

from __future__ import annotations

import ctypes
import resource

import pytest
import torch

from normbench.timing import allocator

VALUES = 400_000


def faults() -> int:
    """Page faults of ten tensors of 1.6 MB, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(VALUES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def stingy() -> None:
    """An allocator that gives back all it can."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("the allocator is not glibc's")
    libc.mallopt(allocator.MMAP_THRESHOLD, 2**17)
    libc.mallopt(allocator.TRIM_THRESHOLD, 0)


def test_what_was_freed_is_used_again(stingy: None) -> None:
    without = faults()
    if not without:
        pytest.skip("earlier tests left holes in the heap that are large enough: nothing to fetch")
    with allocator.memory_kept():
        faults()  # the first is new
        assert faults() < without / 2


def test_afterwards_the_thresholds_are_no_lower_than_glibcs_own(stingy: None) -> None:
    without = faults()
    if not without:
        pytest.skip("earlier tests left holes in the heap that are large enough: nothing to fetch")
    with allocator.memory_kept():
        faults()
    faults()
    assert faults() < without / 2
