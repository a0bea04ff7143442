"""SkipInit and Fixup: residual networks without normalization, told from slots and blocks."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import normbench
from normbench import build, networks, surgery
from normbench.kernels.branches import preceding_convolution, residual_branches
from normbench.methods.fixup import Fixup, ShiftedConv
from normbench.methods.skip_init import SkipInit

ENDS = {
    "test_resnet": ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn3", "layer4.0.bn2"],
    "test_byobnet": [
        "stages.0.0.conv2_1x1.bn",
        "stages.1.0.conv2_kxk.bn",
        "stages.2.0.conv2_kxk.bn",
        "stages.3.0.conv3_1x1.bn",
    ],
    "nb_resnet10_4x4": [f"stages.{i}.bn2" for i in range(4)],
}
assert networks  # registers nb_resnet10_4x4


def two_steps(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(x), torch.arange(len(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def image(network, count=4):
    channels, side = (1, 28) if network.startswith("nb_") else (3, 64)
    return torch.randn(count, channels, side, side)


@pytest.mark.parametrize("network", ENDS)
def test_branches_end_where_gamma_is_zero_or_the_block_adds_its_shortcut(network):
    model = timm.create_model(network, num_classes=10)
    branches = residual_branches(model, surgery.find_slots(model), "x")
    assert [branch.slots[-1] for branch in branches] == ENDS[network]
    for branch in branches:
        assert all(name.startswith(branch.block) for name in branch.slots)
        assert not any("shortcut" in name or "downsample" in name for name in branch.slots)


def test_blocks_that_say_has_skip_end_a_branch_and_their_convolutions_are_found():
    model = timm.create_model("mobilenetv3_small_050", num_classes=10)
    branches = residual_branches(model, surgery.find_slots(model), "x")
    told = {path for path, m in model.named_modules() if getattr(m, "has_skip", False)}
    assert {branch.block for branch in branches} == told
    for branch in branches:
        block = model.get_submodule(branch.block)
        assert branch.slots == tuple(f"{branch.block}.bn{i}" for i in (1, 2, 3))
        found = [preceding_convolution(model, name) for name in branch.slots]
        assert found == [block.conv_pw, block.conv_dw, block.conv_pwl]


class PreActivation(nn.Module):
    """A block that normalizes first: nothing may start at zero in front of its ReLU."""

    has_skip = True

    def __init__(self):
        super().__init__()
        self.norm, self.act, self.conv = nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x + self.conv(self.act(self.norm(x)))


@pytest.mark.parametrize("method", ["skip_init", "fixup"])
@pytest.mark.parametrize("network", ["test_efficientnet", "test_convnext", "pre-activation"])
def test_models_without_a_branch_to_tell_are_refused_and_left_alone(network, method):
    made = network == "pre-activation"
    model = PreActivation() if made else timm.create_model(network, num_classes=10)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="residual branches"):
        normbench.swap(model, method, example_input=torch.randn(2, 3, 8, 8) if made else None)
    assert repr(model) == repr(before)
    pairs = zip(model.state_dict().items(), before.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("method", ["skip_init", "fixup"])
@pytest.mark.parametrize("network", ENDS)
def test_timm_models_train(network, method):
    model = timm.create_model(network, num_classes=10)
    report = normbench.swap(model, method)
    assert report.replaced == report.found
    assert np.isfinite(two_steps(model, image(network))).all()
    assert np.isfinite(two_steps(model, image(network, 1))).all()


@pytest.mark.parametrize("method", ["skip_init", "fixup"])
def test_blocks_start_as_their_shortcut_and_one_number_ends_each_branch(method):
    model = timm.create_model("test_resnet", num_classes=10)
    normbench.swap(model, method)
    x = torch.randn(2, 32, 8, 8)
    assert torch.equal(model.layer1[0](x), x.relu())
    with_number = [n for n, p in model.named_parameters() if n.endswith("multiplier")]
    assert with_number == [f"{end}.multiplier" for end in ENDS["test_resnet"]]
    assert all(model.get_parameter(name).shape == (1,) for name in with_number)


def test_skip_init_is_alpha_times_the_branch():
    model = timm.create_model("test_resnet", num_classes=10)
    normbench.swap(model, "skip_init")
    block, x = model.layer1[0], torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        block.bn1.bias.normal_()
        block.bn2.bias.normal_()
        block.bn2.multiplier.fill_(0.3)
    inner = F.conv2d(x, block.conv1.weight, block.bn1.bias, padding=1).relu()
    branch = F.conv2d(inner, block.conv2.weight, block.bn2.bias, padding=1)
    torch.testing.assert_close(block(x), (x + 0.3 * branch).relu(), rtol=1e-4, atol=1e-4)


def test_alpha_leaves_zero_in_the_first_step():
    model = timm.create_model("nb_resnet10_4x4", num_classes=10)
    normbench.swap(model, "skip_init")
    two_steps(model, image("nb_resnet10_4x4"))
    layers = [m for m in model.modules() if isinstance(m, SkipInit)]
    assert all(m.multiplier.item() != 0 for m in layers if m.multiplier is not None)


def test_swapping_skip_init_for_batch_norm_again_works():
    model = timm.create_model("test_resnet", num_classes=10)
    names = list(model.state_dict())
    normbench.swap(model, "skip_init")
    normbench.swap(model, "batch_norm")
    assert list(model.state_dict()) == names


def test_fixup_scales_by_depth_zeroes_the_last_and_leaves_the_rest():
    model = timm.create_model("test_resnet", num_classes=10)
    before = copy.deepcopy(model)
    normbench.swap(model, "fixup")
    branches = 4
    factors = {"layer3.0.conv1": 0.25, "layer3.0.conv2": 0.25}  # of three convolutions
    factors |= {f"layer{i}.0.conv1": 0.5 for i in (1, 2, 4)}  # of two
    zero = {"layer3.0.conv3", "layer1.0.conv2", "layer2.0.conv2", "layer4.0.conv2", "fc"}
    for name, old in before.named_modules():
        if not isinstance(old, (nn.Conv2d, nn.Linear)):
            continue
        new = model.get_submodule(name)
        new = new.conv if isinstance(new, ShiftedConv) else new
        factor = 0.0 if name in zero else branches ** -factors.get(name, 0.0)
        torch.testing.assert_close(new.weight, factor * old.weight)
    assert not model.fc.bias.any()


def test_fixup_starts_with_the_loss_of_a_guess():
    model = timm.create_model("nb_resnet10_4x4", num_classes=10)
    normbench.swap(model, "fixup")
    loss = F.cross_entropy(model(image("nb_resnet10_4x4")), torch.arange(4))
    assert loss.item() == pytest.approx(math.log(10))


def test_a_fixup_block_is_the_authors():
    """Biases before each convolution and activation, a multiplier and a bias after the last."""
    model = timm.create_model("nb_resnet10_4x4", num_classes=10)
    normbench.swap(model, "fixup")
    block = model.stages[1].double()
    with torch.no_grad():
        for p in block.parameters():
            p.normal_()
    x = torch.randn(2, 16, 8, 8).double()
    bias1a, bias1b, bias2a = block.conv1.shift, block.bn1.shift, block.conv2.shift
    out = F.conv2d(x + bias1a, block.conv1.conv.weight, stride=2, padding=1)
    out = F.conv2d((out + bias1b).relu() + bias2a, block.conv2.conv.weight, padding=1)
    out = out * block.bn2.multiplier + block.bn2.shift
    conv, norm = block.downsample
    shortcut = F.conv2d(x + conv.shift, conv.conv.weight, stride=2) + norm.shift
    torch.testing.assert_close(block(x), (out + shortcut).relu())


def test_fixup_cannot_be_swapped_back_since_its_weights_are_another_initialisation():
    model = timm.create_model("test_resnet", num_classes=10)
    normbench.swap(model, "fixup")
    with pytest.raises(surgery.SurgeryError, match="build the model anew"):
        normbench.swap(model, "batch_norm")


def test_fixup_without_a_classifier_and_without_a_convolution_to_scale():
    headless = timm.create_model("test_resnet", num_classes=0)
    normbench.swap(headless, "fixup")

    class Odd(nn.Module):
        has_skip = True

        def __init__(self):
            super().__init__()
            self.norm, self.pool = nn.BatchNorm2d(3), nn.AvgPool2d(3, 1, 1)

        def forward(self, x):
            return x + self.norm(self.pool(x))

    model = nn.Sequential(Odd(), nn.Flatten(), nn.Linear(3 * 64, 2))
    with pytest.raises(ValueError, match=r"which convolution 0\.norm follows"):
        normbench.swap(model, "fixup", example_input=torch.randn(2, 3, 8, 8))


def test_layers_alone_scale_by_one():
    x = torch.randn(1, 4, 1, 1)
    for method, kind in {"skip_init": SkipInit, "fixup": Fixup}.items():
        layer = build(method, 4)
        assert isinstance(layer, kind)
        assert torch.equal(layer(x), x)
