"""The methods as layers, interpreted: against their eager ancestors, in networks, checkpoints."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normbench
from normbench.registry import TrainingPlan, get

# Lanes outside of a tile hold no values of x: what is computed from them is not stored.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

RENORM = {"hold": 1, "rmax_full": 4, "dmax_full": 3, "momentum": 0.2}
METHODS = [
    ("batch_norm_triton", "batch_norm", {}),
    ("batch_renorm_triton", "batch_renorm", RENORM),
    ("proxy_norm_triton", "proxy_norm", {}),
    ("proxy_norm_triton", "proxy_norm", {"groups": 4, "exact": True}),
    ("group_norm_triton", "group_norm", {"groups": 4}),
    ("layer_norm_chw_triton", "layer_norm_chw", {"affine": False}),
]


def network(seed: int = 0) -> nn.Module:
    """ResNet-18 with its stem, blocks and shortcuts, narrow enough for the interpreter."""
    torch.manual_seed(seed)
    return timm.create_model("resnet18", num_classes=5, channels=(8, 8, 16, 16), stem_width=8)


def losses(model: nn.Module, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    found = []
    for _ in range(steps):
        x = torch.randn(4, 3, 32, 32, generator=generator)
        x = x.contiguous(memory_format=torch.channels_last)  # fewer programs to interpret
        labels = torch.randint(0, 5, (4,), generator=generator)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    ("fused", "eager", "params"),
    [METHODS[0], *(pytest.param(*METHODS[n], marks=pytest.mark.slow) for n in (1, 2, 4))],
    ids=lambda v: str(v)[:20],
)
def test_ten_training_steps_of_a_swapped_resnet18(fused, eager, params) -> None:
    example = torch.randn(2, 3, 32, 32)
    models = []
    for method in (fused, eager):
        model = network().train().to(memory_format=torch.channels_last)
        normbench.swap(model, method, example_input=example, **params)
        models.append(model)
    ours, theirs = (losses(model, 10) for model in models)
    assert ours[-1] != ours[0]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=2e-4, atol=2e-4)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(models[0].eval()(x), models[1].eval()(x), rtol=1e-3, atol=1e-3)


def step(layer: nn.Module, act: nn.Module, x: Tensor, residual: Tensor | None) -> list[Tensor]:
    """Output and gradients; an eager layer gets residual and activation applied behind it."""
    leaf = x.detach().requires_grad_()
    if hasattr(layer, "act"):
        y = layer(leaf) if residual is None else layer(leaf, residual)
    else:
        y = act(layer(leaf) if residual is None else layer(leaf) + residual)
    parameters = list(layer.parameters())
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [leaf, *parameters])]


@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Tanh()], ids=str
)
@pytest.mark.parametrize(("fused", "eager", "params"), METHODS, ids=lambda v: str(v)[:20])
def test_a_layer_is_its_eager_ancestor(fused, eager, params, act) -> None:
    owner = act if get(eager).consumes_activation else None
    ours = normbench.build(fused, 16, act=act, **params)
    theirs = normbench.build(eager, 16, act=owner, **params)
    torch.manual_seed(0)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine += 0.2 * torch.randn_like(mine)
            other.copy_(mine)
    for training in (True, True, True, False):
        x, residual = torch.randn(4, 16, 6, 6) * 2 + 1, torch.randn(4, 16, 6, 6)
        given = residual if get(fused).fuses_residual else None
        found = step(ours.train(training), act, x, given)
        expected = step(theirs.train(training), act, x, given)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max() + 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("fused", "eager", "params"), METHODS, ids=lambda v: str(v)[:20])
def test_under_autocast(fused, eager, params, dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), normbench.build(fused, 16, act=nn.SiLU(), **params))
    with torch.autocast(torch.get_default_device().type, dtype):
        y = model(torch.randn(4, 3, 8, 8))
        y.float().square().mean().backward()
    assert y.dtype is dtype
    for parameter in model.parameters():
        assert parameter.grad.dtype is torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("fused", "eager", "params"), [*METHODS[:3], METHODS[4]], ids=lambda v: str(v)[:20]
)
def test_compiled_whole(fused, eager, params) -> None:
    layer = normbench.build(fused, 16, act=nn.ReLU(), **params)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 16, 6, 6)
        assert torch.equal(compiled(x), layer(x))
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name


def test_float64_takes_the_eager_path() -> None:
    layer = normbench.build("batch_norm_triton", 8, act=nn.ReLU()).double()
    x = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    assert torch.equal(layer(x), F.relu(normbench.build("batch_norm", 8).double()(x)))


@pytest.mark.parametrize("method", ["batch_norm_triton", "batch_renorm_triton"])
def test_checkpoints_of_batch_norm_go_in_and_come_out(method: str) -> None:
    norm = nn.BatchNorm2d(6, eps=1e-3)
    norm(torch.randn(8, 6, 5, 5) * 3 + 1)
    layer = normbench.build(method, 6, eps=1e-3)
    assert layer.state_dict().keys() == norm.state_dict().keys()
    layer.load_state_dict(norm.state_dict())
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(layer.eval()(x), norm.eval()(x))
    back = nn.BatchNorm2d(6, eps=1e-3)
    back.load_state_dict(layer.state_dict())
    torch.testing.assert_close(back.eval()(x), norm(x))


def test_renorm_goes_on_with_its_own_checkpoint_and_starts_anew_with_batch_norms() -> None:
    layer = normbench.build("batch_renorm_triton", 6, **RENORM)
    get("batch_renorm_triton").prepare(layer, TrainingPlan(10))
    for _ in range(4):
        layer(torch.randn(8, 6, 5, 5) * 3 + 1)
    assert layer.active_share() == 0.5  # steps 2 and 3: after the hold
    other = normbench.build("batch_renorm_triton", 6, **RENORM)
    other.load_state_dict(layer.state_dict())
    assert int(other.num_batches_tracked) == 4
    torch.testing.assert_close(other.running_var, layer.running_var)
    x = torch.randn(8, 6, 5, 5)
    torch.testing.assert_close(other(x), layer(x))
    norm = nn.BatchNorm2d(6)
    norm(x)
    other.load_state_dict(norm.state_dict())
    assert int(other.num_batches_tracked) == 0


@pytest.mark.parametrize("method", ["batch_norm_triton", "batch_renorm_triton"])
def test_the_state_dict_is_the_state_itself(method: str) -> None:
    """Averages of weights (timm's ModelEma) write into the values of a state dict."""
    layer = normbench.build(method, 6)
    for value in layer.state_dict().values():
        value.fill_(3)
    assert all((value == 3).all() for value in layer.state_dict().values())
    assert (layer.running_var == 3).all()


def test_renorm_takes_the_state_of_its_eager_ancestor_also_onto_an_empty_layer() -> None:
    eager = normbench.build("batch_renorm", 6, **RENORM)
    for _ in range(3):
        eager(torch.randn(8, 6, 5, 5) * 3 + 1)
    with torch.device("meta"):
        layer = normbench.build("batch_renorm_triton", 6, **RENORM)
    layer.load_state_dict(eager.state_dict(), assign=True)
    assert int(layer.num_batches_tracked) == 3
    std = torch.sqrt(layer.running_var + layer.eps)
    torch.testing.assert_close(std, eager.running_std)


def test_another_activation_is_the_one_that_is_applied() -> None:
    layer = normbench.build("batch_norm_triton", 6, act=nn.SiLU())
    x = torch.randn(4, 6, 5, 5)
    layer.act = nn.Identity()
    torch.testing.assert_close(layer(x), F.batch_norm(x, None, None, training=True))
