"""Accuracy against cost: which boards are joined, and which points are on the front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from synthetic_costs import CUDA, THROUGHPUT, layer, memory, throughput

from normbench.cells import Record
from normbench.leaderboard import catalogue
from normbench.leaderboard.boards import boards
from normbench.leaderboard.costs import cost_boards
from normbench.leaderboard.tradeoff import Tradeoff, front, tradeoffs
from normbench.store import Store

Join = Callable[..., list[Tradeoff]]
NET = "nb_resnet10_1x1"
GROUP: dict[str, Any] = {"method": "group_norm", "variant": "group_norm", "params": {"groups": 32}}
LAYER_NORM: dict[str, Any] = {"method": "layer_norm_chw", "variant": "layer_norm_chw", "params": {}}
COORDINATE = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.fixture
def joined(tmp_path: Path, catalogue_file: Path) -> Join:
    def make(*records: Record) -> list[Tradeoff]:
        frame = Store(synthetic.store(tmp_path / "results", records)).read()
        known = catalogue.load(catalogue_file)
        return tradeoffs(boards(frame, known), cost_boards(frame, known))

    return make


def accuracies(*values: float, batch_size: int = 2, **fields: Any) -> list[Record]:
    return [
        synthetic.record(seed=i, accuracy=v, batch_size=batch_size, **fields)
        for i, v in enumerate(values)
    ]


def pair(make: Callable[..., Record], **fields: Any) -> list[Record]:
    """The cost of batch_norm, and of group_norm a little more."""
    at = {"batch_size": 2, **fields}
    return [make(1.0, **at), make(1.3, **{**at, **GROUP})]


def three(make: Callable[..., Record], **fields: Any) -> list[Record]:
    """The same, and the cost of layer_norm_chw: as many as costs of another model must share."""
    return [*pair(make, **fields), make(1.4, **{"batch_size": 2, **fields, **LAYER_NORM})]


BOTH = [*accuracies(0.5, 0.52), *accuracies(0.8, 0.82, **GROUP)]
THREE = [*BOTH, *accuracies(0.7, 0.72, **LAYER_NORM)]


@given(st.lists(st.tuples(COORDINATE, COORDINATE), max_size=12))
def test_front_is_what_brute_force_finds(points: list[tuple[float, float]]) -> None:
    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1]

    expected = {
        i for i, mine in enumerate(points) if not any(dominates(other, mine) for other in points)
    }
    assert front(points) == expected


def test_joined_by_variant_with_both_figures(joined: Join) -> None:
    [made] = joined(*BOTH, *pair(throughput, model=NET))
    found = {p.variant: (p.accuracy.mean, p.cost.value) for p in made.points}
    assert found == {
        "batch_norm(eps=1e-05)": (pytest.approx(0.51), 1.0),
        "group_norm": (pytest.approx(0.81), 1.3),
    }
    assert (made.batch_size, made.same_model) == (2, True)


def test_other_parameters_are_another_variant(joined: Join) -> None:
    other = {**GROUP, "variant": "group_norm(groups=8)"}
    assert joined(*BOTH, throughput(batch_size=2), throughput(batch_size=2, **other)) == []


def test_costs_of_the_same_model_come_before_those_of_others(joined: Join) -> None:
    own, other = pair(throughput, model=NET), pair(throughput, model="resnet18")
    assert [t.costs.model for t in joined(*BOTH, *own, *other)] == [NET]


def test_costs_of_another_model_are_marked(joined: Join) -> None:
    [made] = joined(*THREE, *three(throughput, model="resnet18"))
    assert (made.costs.model, made.same_model) == ("resnet18", False)


def test_costs_at_another_size_of_images_are_marked(joined: Join) -> None:
    def of_size(records: list[Record], values: float) -> list[Record]:
        name = "min_values_per_channel"
        return [replace(r, metrics={**r.metrics, name: values}) for r in records]

    costs = pair(throughput, model=NET)
    [same] = joined(*of_size(BOTH, 32), *of_size(costs, 32))
    [other] = joined(*of_size(BOTH, 32), *of_size(costs, 128))
    assert (same.same_size, other.same_size) == (True, False)


def test_costs_by_an_earlier_protocol_give_way(joined: Join) -> None:
    earlier, later = (pair(throughput, model=NET, protocol=p) for p in (1, 2))
    assert [t.costs.protocol for t in joined(*BOTH, *earlier)] == [1]
    assert [t.costs.protocol for t in joined(*BOTH, *earlier, *later)] == [2]


def test_two_variants_are_enough_for_the_same_model_alone(joined: Join) -> None:
    assert joined(*BOTH, *pair(throughput, model="resnet18")) == []
    assert len(joined(*BOTH, *pair(throughput, model=NET))) == 1


def test_model_arguments_make_another_model(joined: Join) -> None:
    [made] = joined(*THREE, *three(throughput, model=NET, model_args={"width": 8}))
    assert not made.same_model


def test_another_batch_size_is_not_joined(joined: Join) -> None:
    assert joined(*BOTH, *pair(throughput, model=NET, batch_size=4)) == []


@pytest.mark.parametrize("mode", ["forward", "inference", "inference_folded"])
def test_only_training_steps_count_as_the_cost_of_training(joined: Join, mode: str) -> None:
    config = {**THROUGHPUT, "mode": mode}
    assert joined(*BOTH, *pair(throughput, model=NET, config=config), *pair(layer)) == []


def test_hardware_classes_stay_apart_and_memory_has_its_own(joined: Join) -> None:
    made = joined(
        *THREE, *three(throughput), *three(throughput, hardware_class=CUDA),
        *pair(memory, model=NET),
    )  # fmt: skip
    found = [(t.costs.task, t.costs.hardware_class, t.same_model) for t in made]
    assert found == [
        ("throughput", "cpu-invented", False),
        ("throughput", CUDA, False),
        ("memory", "cpu-invented", True),
    ]


def third(joined: Join, accuracy: tuple[float, float], ratio: float, half: float | None) -> str:
    """Where layer_norm_chw stands beside a cheap batch_norm and an accurate group_norm."""
    [made] = joined(
        *BOTH,
        *accuracies(*accuracy, **LAYER_NORM),
        *pair(throughput, model=NET),
        throughput(ratio, half, model=NET, batch_size=2, **LAYER_NORM),
    )
    places = {p.variant: p.place for p in made.points}
    assert (places["batch_norm(eps=1e-05)"], places["group_norm"]) == ("front", "front")
    return places["layer_norm_chw"]


@pytest.mark.parametrize(
    ("accuracy", "ratio", "half", "place"),
    [
        ((0.70, 0.70), 1.1, 0.01, "front"),  # cheaper than group_norm, better than batch_norm
        ((0.80, 0.80), 1.31, 0.02, "not separated"),  # behind group_norm by less than both know
        ((0.80, 0.80), 1.6, 0.02, "dominated"),  # as accurate perhaps, but clearly slower
        ((0.30, 0.30), 1.31, 0.02, "dominated"),  # as fast perhaps, but clearly worse
        ((0.80, 0.80), 1.6, None, "not separated"),  # how far the ratio reaches is not known
    ],
)
def test_places(
    joined: Join, accuracy: tuple[float, float], ratio: float, half: float | None, place: str
) -> None:
    assert third(joined, accuracy, ratio, half) == place


def test_the_front_is_listed_from_the_cheapest(joined: Join) -> None:
    [made] = joined(*BOTH, *pair(throughput, model=NET))
    assert [p.variant for p in made.front] == ["batch_norm(eps=1e-05)", "group_norm"]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ([], "no cost record"),
        (
            [throughput(status="oom", reason="no room", model=NET, batch_size=2, **LAYER_NORM)],
            "cost: 1 of 1 oom (no room)",
        ),
        (
            [
                throughput(model=NET, batch_size=2, **LAYER_NORM),
                synthetic.record(seed=1, accuracy=None, status="diverged", **LAYER_NORM),
            ],
            "accuracy: 1 of 2 diverged",
        ),
    ],
    ids=["no cost", "cost failed", "a seed diverged"],
)
def test_what_has_no_point_is_named_with_the_reason(
    joined: Join, extra: list[Record], why: str
) -> None:
    known = [*BOTH, *accuracies(0.9, **LAYER_NORM), *pair(throughput, model=NET)]
    [made] = joined(*known, *extra)
    assert made.left_out == (("layer_norm_chw", why),)
    assert len(made.points) == 2


def test_of_one_variant_there_is_nothing_to_weigh(joined: Join) -> None:
    assert joined(*BOTH, throughput(batch_size=2, model=NET)) == []


def test_older_code_on_either_side_is_marked(joined: Join) -> None:
    own = throughput(model=NET, batch_size=2)
    older = throughput(model=NET, batch_size=2, code_hash="0ld", **GROUP)
    [made] = joined(*BOTH, own, older)
    assert {p.method: p.older_code for p in made.points} == {
        "batch_norm": False,
        "group_norm": True,
    }
