"""The Proxy Normalization kernels, interpreted, against float64: hostile shapes, types, spreads."""

from __future__ import annotations

import itertools

import pytest
import torch
from proxy_reference import (
    ACTIVATIONS,
    assert_as_exact_as_eager,
    case,
    fused,
    run,
    without_kinks,
)

from normbench.kernels.fused import proxy_cuts
from normbench.kernels.fused.launch import recording

FIRST, LAST = False, True
RESIDENT, STREAMING = "resident", "streaming"
# Lanes outside of a tile hold no values of x: what is computed from them is not stored.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

GEOMETRIES = [
    ((3, 63, 7, 7), FIRST, 1, RESIDENT), ((3, 63, 7, 7), LAST, 1, RESIDENT),
    ((3, 63, 7, 7), FIRST, 21, RESIDENT), ((3, 63, 7, 7), LAST, 21, RESIDENT),
    ((2, 24, 7, 7), FIRST, 24, RESIDENT), ((2, 24, 7, 7), LAST, 6, RESIDENT),
    ((20, 6, 7, 7), FIRST, 3, RESIDENT), ((20, 6, 7, 7), LAST, 1, RESIDENT),
    ((2, 65, 14, 14), FIRST, 5, RESIDENT), ((2, 65, 14, 14), LAST, 13, RESIDENT),
    ((2, 3, 56, 56), FIRST, 3, RESIDENT), ((2, 3, 56, 56), FIRST, 1, STREAMING),
    ((1, 3, 56, 56), LAST, 1, STREAMING), ((1, 3, 56, 56), LAST, 3, STREAMING),
    ((2, 72, 14, 14), FIRST, 1, STREAMING), ((2, 72, 14, 14), LAST, 1, STREAMING),
    ((2, 66, 14, 14), LAST, 2, STREAMING), ((1, 66, 18, 18), LAST, 3, STREAMING),
    ((1, 64, 24, 24), LAST, 16, STREAMING), ((1, 66, 24, 24), LAST, 22, STREAMING),
    ((1, 48, 28, 28), FIRST, 2, STREAMING), ((2, 72, 12, 12), LAST, 1, STREAMING),
    ((3, 1, 14, 14), FIRST, 1, RESIDENT), ((6, 2048), FIRST, 1, RESIDENT),
    ((6, 96), FIRST, 32, RESIDENT), ((2, 6, 50), LAST, 2, RESIDENT),
    ((2, 4, 3, 4, 5), LAST, 2, RESIDENT),
]  # fmt: skip
"""Shape, layout, groups, and how the kernels go over it."""

SPREADS = [(0.0, 1.0), (10.0, 1.0), (1e4, 1.0), (100.0, 0.01)]
"""Mean and standard deviation of the input."""

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def forms() -> list[tuple[int, ...]]:
    """Geometry, type, activation, spread and `exact`: two of each geometry, all covered."""
    rest = itertools.cycle(itertools.product(range(2), range(3), range(len(ACTIVATIONS))))
    spreads = itertools.cycle(range(len(SPREADS)))
    found = []
    for geometry, _ in itertools.product(range(len(GEOMETRIES)), range(2)):
        for _ in range(5):  # strides of the cycles that have no common divisor
            exact, dtype, act = next(rest)
        found.append((geometry, dtype, act, next(spreads), exact))
    return found


@pytest.mark.parametrize(("geometry", "dtype", "act", "spread", "exact"), forms())
def test_forward_and_backward(geometry, dtype, act, spread, exact) -> None:
    shape, last, groups, form = GEOMETRIES[geometry]
    made = case(shape, last, groups, act, DTYPES[dtype], SPREADS[spread], bool(exact))
    made = without_kinks(made)
    with recording() as launches:
        found = run(fused, made, DTYPES[dtype])
    assert len(launches) == (4 if form == RESIDENT else 6)
    assert_as_exact_as_eager(made, found)


def test_the_fuzz_covers_every_activation_type_and_spread() -> None:
    found = forms()
    for column, choices in ((1, 3), (2, len(ACTIVATIONS)), (3, len(SPREADS)), (4, 2)):
        assert {form[column] for form in found} == set(range(choices))
    assert len({(f[2], f[4]) for f in found}) == 2 * len(ACTIVATIONS)


@pytest.mark.parametrize("last", [FIRST, LAST])
def test_two_thousand_channels(last) -> None:
    """Layer norm where ResNet-50 ends: no program holds a sample."""
    assert_as_exact_as_eager(without_kinks(case((1, 2048, 7, 7), last, 1, exact=True)))


@pytest.mark.parametrize(("shape", "last", "groups"), [
    ((5, 12, 27, 27), FIRST, 1), ((5, 12, 27, 27), LAST, 1), ((5, 6, 7, 7), LAST, 3),
])  # fmt: skip
def test_a_program_takes_several_samples(shape, last, groups, monkeypatch) -> None:
    monkeypatch.setattr(proxy_cuts, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(proxy_cuts, "PROGRAMS_PER_MULTIPROCESSOR", 2)
    made = without_kinks(case(shape, last, groups, exact=True))
    with recording() as launches:
        found = run(fused, made, torch.float32)
    assert max(launch.arguments.get("PER_PROGRAM", 0) for launch in launches) > 1
    assert_as_exact_as_eager(made, found)


@pytest.mark.parametrize(("shape", "last", "groups"), [
    ((3, 24, 7, 7), FIRST, 4), ((3, 24, 7, 7), LAST, 1), ((2, 24, 20, 20), LAST, 1),
    ((1, 32, 24, 24), FIRST, 2),
])  # fmt: skip
def test_without_an_activation_there_is_no_proxy(shape, last, groups) -> None:
    made = case(shape, last, groups, act=0, spread=(10.0, 2.0), proxy=False)
    assert_as_exact_as_eager(made)
    y, _, d_weight = run(fused, made, torch.float32)
    assert y.isfinite().all()
    assert d_weight.shape == (shape[1],)
