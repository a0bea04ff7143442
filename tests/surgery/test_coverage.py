"""One member stands for each family, and whatever happens to it becomes a row."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from normbench.surgery import coverage
from normbench.surgery.coverage import Coverage, Member, Swapped

LEFT = (("norm", "LayerNorm: it normalizes over several dimensions at once, (8, 4, 4)"),)


def test_every_model_of_timm_belongs_to_one_family_and_no_other_models_do() -> None:
    importlib.import_module("normbench.networks")  # registers models of its own with timm
    names = [name for members in coverage.families().values() for name in members]
    own = set(timm.list_models(module="networks"))
    assert own
    assert sorted(names) == sorted(set(timm.list_models()) - own)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("vgg11*", {"vgg": ["vgg11", "vgg11_bn"]}),
        ("inception_v[34]", {"inception_v3": ["inception_v3"], "inception_v4": ["inception_v4"]}),
        ("tresnet", {"tresnet": ["tresnet_l", "tresnet_m", "tresnet_v2_l", "tresnet_xl"]}),
    ],
)
def test_a_pattern_matches_models_and_a_name_a_family(
    pattern: str, found: dict[str, list[str]]
) -> None:
    assert coverage.families(pattern) == found


@pytest.mark.parametrize(("pattern", "nearest"), [("resnte18", "resnet18"), ("*vgg1_bn", "vgg1")])
def test_a_pattern_without_a_match_is_answered_with_the_nearest(pattern: str, nearest: str) -> None:
    with pytest.raises(coverage.CoverageError, match=f"did you mean '{nearest}"):
        coverage.families(pattern)


def test_members_are_measured_without_building_them() -> None:
    plain, normed = coverage.measure(["vgg11", "vgg11_bn"])
    assert plain == Member("vgg11", 132_863_336, 0)
    assert normed == Member("vgg11_bn", 132_868_840, 8)


def test_a_member_that_cannot_be_built_has_its_reason() -> None:
    (member,) = coverage.measure(["no_such_model"])
    assert member.parameters is None
    assert "no_such_model" in member.problem
    assert "\n" not in member.problem


def test_the_smallest_member_with_a_norm_stands_for_its_family() -> None:
    members = [
        Member("unbuilt", None, 0), Member("test_small", 1, 3), Member("bare", 2, 0),
        Member("b", 5, 4), Member("a", 5, 9), Member("large", 7, 1),
    ]  # fmt: skip
    expected = ["a", "b", "large", "test_small", "unbuilt"]
    for order in (members, members[::-1]):
        left, chosen = list(order), []
        while (member := coverage.choose(left)) is not None:
            chosen.append(member.name)
            left.remove(member)
        assert chosen == expected


def test_a_family_without_norms_has_no_member() -> None:
    assert coverage.choose([Member("a", 5, 0), Member("b", 7, 0)]) is None
    assert Coverage("nfnet").status == "no norm"


@pytest.mark.parametrize(
    ("name", "kinds", "paired", "side"),
    [
        ("test_efficientnet", {"BatchNormAct2d": 13}, 9, 64),
        ("test_vit", {"LayerNorm": 13}, 0, 160),
    ],
)
def test_a_row_says_what_was_found_and_done(
    name: str, kinds: dict[str, int], paired: int, side: int
) -> None:
    row = coverage.probe("family", coverage.measure([name])[0], train=True)
    assert (row.status, row.reason, row.found, row.kinds) == ("full", "", 13, kinds)
    assert [swapped.replaced for swapped in row.swaps.values()] == [13, 13]
    owner = row.swaps["proxy_norm"]
    assert (owner.paired, owner.consumed, owner.unconsumed) == (paired, paired, ())
    assert owner.input_shape == (2, 3, side, side)
    assert len(owner.losses) == coverage.STEPS
    assert not owner.evaluation_only


def test_a_model_that_fails_becomes_a_row() -> None:
    row = coverage.probe("family", Member("no_such_model", 5, 2))
    assert (row.status, row.model, row.found) == ("failed", "no_such_model", 0)
    assert "no_such_model" in row.reason


class Normed(nn.Module):
    """A convolution, a norm and what `after` adds; timm's configuration says how to call it."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, 4, 4), "first_conv": "conv"}
        self.conv, self.bn, self.after = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.bn(self.conv(x)))


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of\n  luck")


@pytest.fixture
def timm_builds(monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes `timm.create_model` build the given module."""

    def arrange(after: nn.Module) -> None:
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained: Normed(after))

    return arrange


def test_a_swap_that_fails_becomes_a_row_with_one_line(timm_builds) -> None:  # type: ignore[no-untyped-def]
    timm_builds(Fails())
    row = coverage.probe("family", Member("made_up", 5, 1))
    assert row.status == "failed"
    assert row.reason == (
        "Normed does not run on an input of shape (2, 3, 4, 4): out of luck; pass example_input"
    )


def test_fewer_groups_are_tried_where_a_variance_does_not_exist(timm_builds) -> None:  # type: ignore[no-untyped-def]
    timm_builds(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32)))
    swaps = coverage.probe("family", Member("made_up", 5, 2)).swaps
    assert swaps["group_norm"].variant == "group_norm(groups=8)"
    assert "got 1" in swaps["group_norm"].instead
    assert (swaps["proxy_norm"].variant, swaps["proxy_norm"].instead) == ("proxy_norm", "")


def test_slots_left_are_explained(timm_builds) -> None:  # type: ignore[no-untyped-def]
    timm_builds(nn.LayerNorm((8, 4, 4)))
    row = coverage.probe("family", Member("made_up", 5, 2))
    assert (row.status, row.found) == ("partial", 2)
    assert row.reason == f"1 slot left: {LEFT[0][1]}"


def test_reasons_that_differ_between_methods_name_the_method() -> None:
    swaps = {"group_norm": Swapped(replaced=2), "proxy_norm": Swapped(error="no luck")}
    row = Coverage("family", "model", 5, 2, {"LayerNorm": 2}, swaps)
    assert (row.status, row.reason) == ("failed", "proxy_norm: no luck")


def test_a_loss_that_is_not_finite_is_a_failure(timm_builds) -> None:  # type: ignore[no-untyped-def]
    class Explodes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.inf

    timm_builds(Explodes())
    row = coverage.probe("family", Member("made_up", 5, 1), train=True)
    assert "not finite" in row.reason
    assert coverage.probe("family", Member("made_up", 5, 1)).status == "full"


@pytest.mark.slow
def test_norms_of_every_family_are_replaced(tmp_path: Path) -> None:
    """The whole of timm, in a process of its own as users run it."""
    out = tmp_path / "coverage.json"
    words = ["coverage", "--format", "json", "--out", str(out), "--seconds", "600", "--memory", "8"]
    program = "import sys; from normbench.cli import main; main(sys.argv[1:])"
    subprocess.run([sys.executable, "-P", "-c", program, *words], check=True)
    rows = json.loads(out.read_text(encoding="utf-8"))["families"]
    assert len(rows) == len(timm.list_modules())
    assert {row["family"]: row["reason"] for row in rows if row["reason"]} == {}
    assert [row["family"] for row in rows if row["status"] == "no norm"] == ["nfnet"]
