from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from normbench import build, swap

C = 6


@pytest.fixture
def trained():
    """A batch norm with averages, gamma and beta of its own."""
    layer = nn.BatchNorm2d(C)
    layer(torch.randn(8, C, 4, 4) * 3 + 1)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize(
    ("theirs", "options"),
    [(FrozenBatchNorm2d, {}), (FrozenBatchNormAct2d, {"apply_act": False})],
)
def test_it_is_the_librarys(trained, theirs, options):
    ours, theirs = build("frozen_batch_norm", C), theirs(C, **options)
    ours.load_state_dict(trained.state_dict())
    theirs.load_state_dict(trained.state_dict(), strict=False)
    a, b = (torch.randn(4, C, 5, 5).requires_grad_() for _ in range(2))
    b.data.copy_(a.data)
    torch.testing.assert_close(ours(a), theirs(b))
    ours(a).cos().sum().backward()
    theirs(b).cos().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert {name for name, _ in ours.named_buffers()} >= {n for n, _ in theirs.named_buffers()}


def test_training_is_batch_norms_evaluation_and_moves_nothing(trained):
    layer = build("frozen_batch_norm", C)
    layer.load_state_dict(trained.state_dict())
    x = torch.randn(4, C, 5, 5)
    torch.testing.assert_close(layer.train()(x), trained.eval()(x))
    assert all(torch.equal(v, trained.state_dict()[n]) for n, v in layer.state_dict().items())


def test_there_is_nothing_to_learn_unless_asked():
    assert not list(build("frozen_batch_norm", C).parameters())
    layer = build("frozen_batch_norm", C, learn_affine=True)
    layer(torch.randn(4, C)).square().sum().backward()
    assert {n for n, p in layer.named_parameters() if p.grad is not None} == {"weight", "bias"}


@pytest.mark.parametrize("shape", [(1, C), (1, C, 1, 1), (1, C, 2)])
def test_a_new_layer_maps_anything_to_itself_but_for_eps(shape):
    x = torch.randn(shape)
    torch.testing.assert_close(build("frozen_batch_norm", C)(x), x / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_swapped_timm_model_is_the_evaluated_one_and_trains(name, learn):
    model = timm.create_model(name, num_classes=10)
    for _ in range(3):
        model(torch.randn(8, 3, 96, 96))
    x = torch.randn(4, 3, 96, 96)
    expected = model.eval()(x)
    swap(model.train(), "frozen_batch_norm", learn_affine=learn)
    model.apply(lambda m: m.eval() if isinstance(m, nn.Dropout) else None)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_a_later_batch_norm_gets_gamma_and_beta_back_as_parameters(trained):
    model = nn.Sequential(nn.Conv2d(3, C, 3), trained)
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    example = torch.randn(2, 3, 8, 8)
    swap(model, "frozen_batch_norm", example_input=example)
    swap(model, "batch_norm", example_input=example)
    assert {n for n, p in model[1].named_parameters() if p.requires_grad} == {"weight", "bias"}
    assert all(torch.equal(v, state[n]) for n, v in model[1].state_dict().items())
