"""What a swap must not change, and that what it leaves can be used like any model."""

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

from normbench import surgery
from normbench.registry import RegistryError
from normbench.surgery import slots

METHODS = ["batch_norm", "batch_renorm", "group_norm", "proxy_norm", "weight_standardization"]
X = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
def test_random_state_is_the_same_after_a_swap(method: str) -> None:
    model = timm.create_model("test_resnet", drop_rate=0.5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    surgery.swap(model, method)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_keep_their_initial_weights(method: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")
    before = {n: m.weight.clone() for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    surgery.swap(model, method)
    for name, weight in before.items():
        conv = model.get_submodule(name)
        is_taken = parametrize.is_parametrized(conv)
        held = conv.parametrizations.weight.original if is_taken else conv.weight
        assert torch.equal(held, weight), name


def test_the_proof_leaves_no_gradient_hook_or_statistic() -> None:
    model = timm.create_model("test_resnet")
    surgery.swap(model, "batch_norm")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    counted = [b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert counted
    assert not any(counted)


def test_looking_for_slots_does_not_disturb_the_model() -> None:
    model = timm.create_model("test_efficientnet")
    model.blocks[0].eval()
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    surgery.find_slots(model)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "method", "params", "error"),
    [
        ("test_convnext", "instance_norm", {}, surgery.SurgeryError),
        ("test_resnet", "group_norm", {"groups": 0}, RegistryError),
        ("test_resnet", "group_morn", {}, RegistryError),
    ],
)
def test_a_swap_that_fails_leaves_the_model_as_it_was(
    name: str, method: str, params: dict[str, int], error: type[ValueError]
) -> None:
    model = timm.create_model(name)
    before = [(path, type(module)) for path, module in model.named_modules()]
    with pytest.raises(error):
        surgery.swap(model, method, **params)
    assert [(path, type(module)) for path, module in model.named_modules()] == before


def through_pickle(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def compiled(model: nn.Module) -> Callable[..., torch.Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager", fullgraph=True)


@pytest.mark.parametrize("use", [copy.deepcopy, through_pickle, compiled])
@pytest.mark.parametrize(
    ("name", "method"),
    [("test_resnet", "proxy_norm"), ("test_efficientnet", "group_norm"), ("test_vit", "rms")],
)
def test_a_swapped_model_can_be_copied_saved_and_compiled(
    use: Callable[[nn.Module], nn.Module], name: str, method: str
) -> None:
    model = timm.create_model(name).eval()
    report = surgery.swap(model, "layer_norm_channels" if method == "rms" else method)
    x = torch.randn(report.input_shape)
    torch.testing.assert_close(use(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_saved_and_loaded_model_can_be_swapped_again() -> None:
    model = through_pickle(_swapped("test_efficientnet", "proxy_norm"))
    assert surgery.swap(model, "batch_norm").found == 13


def _swapped(name: str, method: str) -> nn.Module:
    model = timm.create_model(name)
    surgery.swap(model, method)
    return model


class Fussy(nn.Module):
    """Runs at 200×200 alone, which is not the first size that is tried."""

    def __init__(self) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, 200, 200)}
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.Linear(4 * 25 * 25, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.stem(x))
        return out


def test_nothing_of_a_model_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that was caught holds what ran: one more model of memory until Python collects."""
    kept: list[weakref.ref[nn.Module]] = []

    def noted(model: nn.Module) -> nn.Module:
        kept.append(weakref.ref(model))
        return model

    monkeypatch.setattr(slots, "duplicate", lambda model: noted(copy.deepcopy(model)))
    gc.collect()
    gc.disable()
    try:
        model = noted(Fussy())
        surgery.swap(model, "group_norm")
        del model
        assert [model() for model in kept] == [None, None]
    finally:
        gc.enable()
