"""Layers that apply the activation and add the shortcut too: where they stand, and what changes."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable

import pytest
import timm
import torch
from fusing import X, add_methods, made, swapped
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import surgery


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    add_methods(monkeypatch)


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("resnet18", {"norm+add+relu": 8, "norm+relu": 9, "norm": 3}),
        ("resnet50", {"norm+add+relu": 16, "norm+relu": 33, "norm": 4}),
        ("regnetx_002", {"norm+add+relu": 13, "norm+relu": 27, "norm": 4}),
        ("efficientnet_b0", {"norm+silu": 33, "norm": 16}),
        ("repvgg_a0", {"norm+add+relu": 22, "norm": 39}),
        ("plain", {"norm+add+relu": 2, "norm+relu": 3}),
        ("right", {"norm+add+relu": 2, "norm+relu": 3}),
        ("function", {"norm+add+relu": 2, "norm+relu": 3}),
    ],
)
def test_every_slot_gets_the_longest_form_that_its_place_allows(
    name: str, forms: dict[str, int]
) -> None:
    _, report = swapped(name)
    assert list(report.forms.items()) == list(forms.items())
    taken = sum(forms.values()) - forms["norm"] if "norm" in forms else sum(forms.values())
    assert report.consumed_activations == taken
    assert report.unconsumed == report.notes == ()
    assert json.loads(json.dumps(report.to_json()))["forms"] == forms
    assert f"  forms: {', '.join(f'{n} {form}' for form, n in forms.items())}\n" in f"{report}\n"


def test_a_method_that_takes_nothing_over_has_no_forms() -> None:
    assert swapped("resnet18", "batch_norm")[1].forms == {}
    assert swapped("resnet18", "proxy_norm")[1].forms == {"norm+relu": 9, "norm": 11}


@pytest.mark.parametrize("method", ["group_norm_triton", "layer_norm_chw_triton"])
def test_group_and_layer_norm_take_activations_over_and_leave_shortcuts(method: str) -> None:
    model, report = swapped("plain", method)
    assert report.forms == {"norm+relu": 1, "norm": 4}
    twin, _ = swapped("plain", method.removesuffix("_triton"))
    assert model.state_dict().keys() == twin.state_dict().keys()
    same_training(model, twin, X)


@pytest.mark.parametrize(
    ("name", "rate", "add", "reason"),
    [
        ("seresnet50", 0.0, 0, "SEModule stands between norm and sum (16 slots)"),
        ("resnet18", 0.1, 1, "DropPath stands between norm and sum (7 slots)"),
    ],
)
def test_what_stands_between_keeps_them_apart(
    name: str, rate: float, add: int, reason: str
) -> None:
    model = timm.create_model(name, num_classes=4, drop_path_rate=rate)
    report = surgery.swap(model, "fused")
    assert report.forms.get("norm+add+relu", 0) == add
    assert report.notes == (f"norm, sum and activation stay apart: {reason}",)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("dropout", r"Dropout stands between norm and sum \(2 slots\)"),
        ("functional", r"the functional activation relu cannot be removed \(2 slots\)"),
        ("second reader", r"its output also goes to the function mean \(2 slots\)"),
        ("sum read twice", r"its output also goes to the function add \(2 slots\)"),
        ("no result", "Sequential does not run with fused on an input of shape"),
        ("stochastic", r"Sequential does not run with fused on an input .*unsupported operand"),
        ("scaled", ""),
        ("broadcast", ""),
    ],
)
def test_a_block_that_does_more_is_left_as_it_was_and_says_why(way: str, reason: str) -> None:
    model, report = swapped(way)
    twin, other = swapped(way, "apart")
    assert "norm+add+relu" not in report.forms
    assert other.notes == ()
    if reason:
        assert re.search(f"norm, sum and activation stay apart: {reason}", report.notes[0])
    else:  # no shortcut is added before the activation, as far as layers could add one
        assert report.notes == ()
    same_training(model, twin, X)


def same_training(model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """Both make the same two steps of SGD in float64, from the same state."""
    histories = []
    for network in (model, twin):
        torch.manual_seed(0)
        network.double().train()
        for parameter in network.parameters():
            if not parameter.any():  # the last gammas, which hide what their norm gives
                nn.init.constant_(parameter, 0.3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        seen = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x.double()), torch.arange(len(x)) % 4)
            loss.backward()
            optimizer.step()
            seen += [loss.detach(), *(p.grad for p in network.parameters())]
        histories.append([*seen, *network.state_dict().values()])
    for ours, theirs in zip(*histories, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "plain", "right", "function"])
def test_training_is_that_of_the_model_whose_layers_add_nothing(name: str) -> None:
    model, report = swapped(name)
    twin, other = swapped(name, "apart")
    assert "norm+add+relu" in report.forms
    assert "norm+add+relu" not in other.forms
    x = torch.randn(4, 3, 32, 32) if timm.is_model(name) else X
    same_training(model, twin, x)


def looks(model: nn.Module) -> list[tuple[str, str]]:
    return [(path, f"{type(m).__qualname__} {m.extra_repr()}") for path, m in model.named_modules()]


@pytest.mark.parametrize("method", ["batch_norm", "proxy_norm", "fused"])
@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "plain"])
def test_a_later_swap_gives_what_it_gives_without_the_first(name: str, method: str) -> None:
    model, _ = swapped(name)
    example = None if timm.is_model(name) else X
    report = surgery.swap(model, method, example_input=example)
    fresh, expected = swapped(name, method)
    assert looks(model) == looks(fresh)
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert (report.forms, report.notes) == (expected.forms, expected.notes)
    kinds = {slot.name: slot.activation for slot in report.slots}
    assert kinds == {slot.name: slot.activation for slot in expected.slots}
    x = torch.randn(report.input_shape)
    torch.testing.assert_close(model.eval()(x), fresh.eval()(x))


@pytest.mark.parametrize("name", ["resnet18", "plain"])
def test_the_state_has_the_keys_of_the_model_as_it_was_built(name: str) -> None:
    assert list(swapped(name)[0].state_dict()) == list(made(name).state_dict())


def through_pickle(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def compiled(model: nn.Module) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager", fullgraph=True)


def exported(model: nn.Module) -> Callable[..., Tensor]:
    return torch.export.export(model, (X,)).module()


@pytest.mark.parametrize("use", [copy.deepcopy, through_pickle, compiled, exported])
@pytest.mark.parametrize("name", ["resnet18", "plain", "right"])
def test_a_fused_model_can_be_copied_saved_compiled_and_exported(
    use: Callable[[nn.Module], nn.Module], name: str
) -> None:
    model = swapped(name)[0].eval()
    again = use(model)
    torch.testing.assert_close(again(X), model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use", [copy.deepcopy, through_pickle])
def test_a_copy_can_be_swapped_back_and_leaves_the_model_alone(
    use: Callable[[nn.Module], nn.Module],
) -> None:
    model = swapped("resnet18")[0].eval()
    before, kinds = model(X), looks(model)
    again = use(model)
    surgery.swap(again, "batch_norm")
    assert looks(again) == looks(swapped("resnet18", "batch_norm")[0])
    assert looks(model) == kinds
    assert torch.equal(model(X), before)


def test_hooks_see_the_input_the_shortcut_and_the_sum() -> None:
    model = swapped("plain")[0].eval()
    seen: list[Tensor] = []
    model[1].bn2.register_forward_hook(lambda _, args, output: seen.extend([*args, output]))
    block_input = model[0](X)
    y = model[1](block_input)
    assert [tensor.shape for tensor in seen] == [y.shape] * 3
    assert seen[1] is block_input
    assert torch.equal(seen[2], y)


def test_slots_of_a_fused_model_are_found() -> None:
    model, report = swapped("plain")
    slots = surgery.find_slots(model, X)
    assert [slot.name for slot in slots] == [slot.name for slot in report.slots]
    assert {slot.activation for slot in slots} == {"fused"}


def test_a_layer_that_adds_the_shortcut_is_not_folded() -> None:
    model, report = swapped("resnet18")
    before = model.eval()(X)
    folded = surgery.fold(model)
    left = [name for name, reason in folded.left if "adds the shortcut" in reason]
    assert len(left) == report.forms["norm+add+relu"]
    torch.testing.assert_close(model(X), before, rtol=1e-3, atol=1e-4)


def test_a_layer_that_forgets_the_norm_is_found_out_and_not_fused() -> None:
    model, report = swapped("resnet18", "forgetful")
    assert report.forms == {"norm+relu": 9, "norm": 11}
    (note,) = report.notes
    assert "ResNet computes something else where layers add the shortcut" in note
    same_training(model, swapped("resnet18", "apart")[0], torch.randn(4, 3, 32, 32))


def test_the_proof_leaves_gammas_and_statistics_as_they_were() -> None:
    model = made("resnet18")
    before = copy.deepcopy(model.state_dict())
    surgery.swap(model, "fused")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert not state["layer1.0.bn2.weight"].any()


def test_a_part_cut_out_of_a_fused_model_can_be_swapped_and_a_lone_layer_says_why_not() -> None:
    model, _ = swapped("plain")
    surgery.swap(model[1], "batch_norm", example_input=torch.randn(2, 8, 8, 8))
    assert looks(model[1]) == looks(swapped("plain", "batch_norm")[0][1])
    model[2].relu = nn.ReLU()
    with pytest.raises(surgery.SurgeryError, match=r"2\.bn2 adds a shortcut.*build the model anew"):
        surgery.swap(model, "batch_norm", example_input=X)
