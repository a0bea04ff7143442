"""What a new layer takes over from the old one, checked by numbers."""

import copy

import pytest
import timm
import torch
from torch import nn

from normbench import surgery

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(name: str, **options: object) -> nn.Module:
    """A model whose affine parameters and running statistics are not those of a fresh one."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(7)
        if getattr(module, "weight", None) is not None and module.weight.ndim == 1:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_for_batch_norm_changes_no_output(name: str, train: bool) -> None:
    model = trained(name)
    twin = copy.deepcopy(model).train(train)
    model.train(train)
    surgery.swap(model, "batch_norm")
    torch.testing.assert_close(model(X), twin(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.eval()(X), twin.eval()(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_layer_norm_for_layer_norm_changes_no_output(name: str) -> None:
    model, x = trained(name), torch.randn(2, 3, 160, 160)
    expected = model(x)
    surgery.swap(model, "layer_norm_channels")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_batch_renorm_takes_the_running_statistics_and_gives_them_back() -> None:
    model = trained("test_resnet")
    expected = model(X)
    surgery.swap(model, "batch_renorm", eps=1e-5)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    surgery.swap(model, "batch_norm")
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


def test_weight_and_bias_carry_over_and_so_does_zero_init() -> None:
    model = timm.create_model("test_resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = surgery.swap(model, "group_norm")
    after = model.state_dict()
    affine = [n for n in before if n.endswith((".weight", ".bias")) and n in after]
    assert all(torch.equal(before[name], after[name]) for name in affine)
    zero = [slot.name for slot in report.slots if slot.zero_init]
    assert zero
    assert all(not model.get_submodule(name).weight.any() for name in zero)


def test_state_names_stay_where_nothing_is_fused() -> None:
    model = timm.create_model("test_resnet")
    names = list(model.state_dict())
    surgery.swap(model, "batch_norm")
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("given", "used"), [({}, 1e-3), ({"eps": None}, 1e-3), ({"eps": 1e-2}, 1e-2)], ids=str
)
def test_eps_is_inherited_unless_given(given: dict[str, float], used: float) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3))
    report = surgery.swap(model, "batch_norm", example_input=X, **given)
    assert report.eps == (used,)
    assert model[0].eps == used


def test_a_method_with_an_eps_of_its_own_keeps_it() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert surgery.swap(model, "batch_renorm", example_input=X).eps == (1e-3,)


@pytest.mark.parametrize("affine", [True, False])
def test_affine_is_inherited(affine: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, affine=affine))
    surgery.swap(model, "group_norm", groups=1, example_input=X)
    assert len(list(model.parameters())) == (2 if affine else 0)


def test_dtype_training_flag_and_frozen_parameters_carry_over() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3)).double()
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    surgery.swap(model, "batch_norm", example_input=X.double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert [m.training for m in model] == [False, True]
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, False]


def test_swapping_twice_equals_swapping_once() -> None:
    torch.manual_seed(0)
    direct = timm.create_model("test_efficientnet").eval()
    detour = copy.deepcopy(direct)
    surgery.swap(direct, "group_norm", groups=8)
    for method in ("batch_renorm", "proxy_norm", "weight_standardization"):
        surgery.swap(detour, method)
    report = surgery.swap(detour, "group_norm", groups=8)
    assert (report.found, report.paired_activations) == (13, 9)
    assert report.eps == (1e-5,)
    torch.testing.assert_close(detour(X), direct(X), rtol=0, atol=0)
