"""Which activation belongs to which slot, and when a method may take it over."""

import pytest
import torch
from torch import Tensor, nn

from normbench import surgery


class Net(nn.Module):
    """Convolution, norm, and one of several ways to go on."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        x = self.norm(before)
        if self.way == "in-place add":
            x += before
        if self.way == "dropout":
            x = self.drop(x)
        if self.way == "second reader":
            return x * 2 + self.act(x)
        if self.way == "function":
            return torch.relu(x)
        if self.way == "in-place function":
            return nn.functional.relu(x, inplace=True)
        if self.way == "shape":
            x = x.reshape(x.shape).contiguous()
        return self.act(self.act(x) - 1) if self.way == "shared" else self.act(x)


def swapped(way: str) -> tuple[surgery.Slot, surgery.SwapReport, nn.Module]:
    model = Net(way)
    report = surgery.swap(model, "proxy_norm", example_input=torch.randn(2, 3, 8, 8))
    return report.slots[0], report, model


def test_an_activation_that_follows_directly_is_taken_over() -> None:
    slot, report, model = swapped("direct")
    assert slot.activation == "act"
    assert (report.consumed_activations, report.unconsumed) == (1, ())
    assert isinstance(model.act, nn.Identity)
    assert isinstance(model.norm.act, nn.ReLU)


def test_an_in_place_add_keeps_the_tensor_but_breaks_the_pair() -> None:
    slot, report, model = swapped("in-place add")
    assert slot.activation is None
    assert isinstance(model.act, nn.ReLU)
    assert report.paired_activations == 0


@pytest.mark.parametrize("way", ["function", "in-place function"])
def test_a_functional_activation_is_not_taken_over_and_named(way: str) -> None:
    slot, report, model = swapped(way)
    assert slot.activation is None
    assert report.unconsumed == ((slot.name, "the functional activation relu cannot be removed"),)
    assert model.norm.act is None


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("second reader", "its output also goes to the function mul"),
        ("shared", "activation act serves other places too"),
        ("dropout", "its output also goes to the function dropout and the module drop"),
    ],
)
def test_a_pair_that_cannot_be_joined_stays_and_says_why(way: str, reason: str) -> None:
    slot, report, model = swapped(way)
    assert slot.activation == "act"
    assert report.unconsumed == (("norm", reason),)
    assert isinstance(model.act, nn.ReLU)
    assert model.norm.act is None


def test_asking_for_a_shape_is_not_reading() -> None:
    # reshape makes a new tensor, so there is no pair; the reason names reshape and nothing else
    slot, report, _ = swapped("shape")
    assert slot.activation is None
    assert report.unconsumed == ()


def test_an_activation_left_behind_no_longer_overwrites() -> None:
    # `none` returns its very input: an in-place activation would change what the conv gave
    model = Net("direct")
    surgery.swap(model, "none", example_input=(x := torch.randn(2, 3, 8, 8)))
    seen = []
    model.conv.register_forward_hook(lambda *given: seen.append((given[2], given[2].clone())))
    model(x)
    torch.testing.assert_close(*seen[0], rtol=0, atol=0)


class Twice(nn.Module):
    """One norm and one activation used at two places, as a detection head does."""

    def __init__(self, acts: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(acts))

    def forward(self, x: Tensor) -> Tensor:
        return self.acts[0](self.norm(x)) + self.acts[-1](self.norm(x - 1))


@pytest.mark.parametrize(("acts", "activation", "consumed"), [(1, "acts.0", 1), (2, None, 0)])
def test_a_norm_called_twice_pairs_only_with_one_activation(
    acts: int, activation: str | None, consumed: int
) -> None:
    report = surgery.swap(Twice(acts), "proxy_norm", example_input=torch.randn(2, 3, 8, 8))
    assert report.slots[0].activation == activation
    assert report.consumed_activations == consumed


@pytest.mark.parametrize(("acts", "named"), [(2, "0, 1"), (3, "0, 1 …")])
def test_activations_that_share_one_output_are_counted(acts: int, named: str) -> None:
    class Branches(nn.ModuleList):
        def forward(self, x: Tensor) -> Tensor:
            return sum(act(x) for act in self)  # type: ignore[return-value]

    model = nn.Sequential(nn.BatchNorm2d(3), Branches(nn.ReLU() for _ in range(acts)))
    report = surgery.swap(model, "proxy_norm", example_input=torch.randn(2, 3, 8, 8))
    named = ", ".join(f"1.{name}" for name in named.split(", "))
    assert report.unconsumed == (("0", f"{acts} activations follow it: {named}"),)
