"""Batch norms that differ in evaluation, by the batch or by the sample at hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import normbench
from normbench import build
from normbench.tasks.training import optimizer_for

X = torch.randn(6, 8, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
METHODS = ["adaptive_batch_norm", "four_things", "instance_aware_batch_norm"]


def after_training(name, **params):
    """The layer after three batches, and torch's BatchNorm with the same state."""
    layer, torchs = build(name, 8, **params), nn.BatchNorm2d(8)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 2, 8))
        layer.bias.copy_(torch.linspace(0, 3, 8))
    for _ in range(3):
        layer(torch.randn(6, 8, 5, 4) * 3 - 1)
    torchs.load_state_dict(layer.state_dict())
    return layer.eval(), torchs.eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet"])
def test_two_steps_in_a_timm_model(method, model):
    net = timm.create_model(model, num_classes=10)
    report = normbench.swap(net, method)
    assert report.replaced == report.found > 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    for _ in range(2):
        loss = nn.functional.cross_entropy(net.train()(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss)
    assert torch.isfinite(net.eval()(x)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_pretrained_batch_norm_carries_over(method):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model(torch.randn(4, 3, 9, 9))
    before = {k: v.clone() for k, v in model[1].state_dict().items()}
    normbench.swap(model, method, example_input=torch.randn(2, 3, 9, 9))
    after = model[1].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# adaptive_batch_norm


def test_adaptive_trains_like_torchs_batch_norm():
    ours, torchs = build("adaptive_batch_norm", 8), nn.BatchNorm2d(8)
    for _ in range(2):
        assert torch.equal(ours(X), torchs(X))
    assert torch.equal(ours.running_var, torchs.running_var)


def test_adaptive_evaluates_by_the_target_batch_as_batch_norm_would_train_on_it():
    layer, torchs = after_training("adaptive_batch_norm")
    assert torch.equal(layer(X), torchs.train()(X))


def test_adaptive_undoes_a_shift_and_a_scale_of_the_whole_target():
    layer, _ = after_training("adaptive_batch_norm", eps=1e-12)
    torch.testing.assert_close(layer(7 * X - 30), layer(X), rtol=1e-4, atol=1e-4)


def test_adaptive_with_few_or_many_source_samples_is_the_target_or_the_source():
    layer, torchs = after_training("adaptive_batch_norm", source_weight=1e-7)
    torch.testing.assert_close(layer(X), torchs.train()(X))
    layer, torchs = after_training("adaptive_batch_norm", source_weight=1e9)
    torch.testing.assert_close(layer(X), torchs(X))


def test_adaptive_mixes_by_the_number_of_samples():
    # six samples for the batch, six for the source: half of each, whatever the size of the maps
    layer, _ = after_training("adaptive_batch_norm", source_weight=6)
    layer.weight.data.fill_(1)
    layer.bias.data.zero_()
    mean = (layer.running_mean + X.mean((0, 2, 3))) / 2
    var = (layer.running_var + X.var((0, 2, 3), correction=0)) / 2
    expected = (X - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(layer(X), expected)


def test_adaptive_evaluates_a_single_value_only_with_a_source():
    one = torch.randn(1, 8, 1, 1)
    with pytest.raises(ValueError, match="values per channel"):
        after_training("adaptive_batch_norm")[0](one)
    y = after_training("adaptive_batch_norm", source_weight=3)[0](one)
    assert torch.isfinite(y).all()


# four_things


def test_a_sample_without_weight_and_one_ghost_is_batch_norm():
    layer, torchs = build("four_things", 8, alpha=0, momentum=0.1), nn.BatchNorm2d(8)
    assert torch.equal(layer(X), torchs(X))
    layer, torchs = after_training("four_things", alpha=0)
    assert torch.equal(layer(X), torchs(X))


def test_a_sample_of_full_weight_is_instance_norm():
    layer, _ = after_training("four_things", alpha=1)
    expected = nn.functional.instance_norm(X, weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(layer(X), expected)


@pytest.mark.parametrize(("size", "sizes"), [(3, (3, 3)), (4, (3, 3)), (5, (3, 3)), (2, (2, 2, 2))])
def test_ghosts_are_batch_norms_of_consecutive_samples_of_nearly_equal_number(size, sizes):
    expected = torch.cat([nn.BatchNorm2d(8)(part) for part in X.split(sizes)])
    torch.testing.assert_close(build("four_things", 8, ghost_size=size)(X), expected)


def test_the_sample_counts_in_evaluation_as_it_did_in_its_ghost():
    assert build("four_things", 8).alpha == 1 / 16
    assert build("four_things", 8, ghost_size=4).alpha == 1 / 4
    assert build("four_things", 8, ghost_size=4, alpha=0).alpha == 0


def test_the_default_weight_estimates_a_ghosts_mean_best():
    # E[mean of a ghost | one of its samples] = mean of the sample/size + (1 − 1/size)·mean
    ghosts = torch.randn(4000, 8)  # population mean 0; a ghost of eight samples
    errors = {a: (ghosts.mean(1) - a * ghosts[:, 0]).square().mean() for a in (0, 1 / 8, 1 / 2)}
    assert min(errors, key=errors.__getitem__) == 1 / 8


def test_running_moments_are_those_of_the_whole_batch_whatever_the_ghosts():
    whole, cut = build("four_things", 8, momentum=1), build("four_things", 8, ghost_size=2)
    cut.momentum = 1.0
    whole(X)
    cut(X)
    torch.testing.assert_close(whole.running_mean, X.mean((0, 2, 3)))
    torch.testing.assert_close(whole.running_var, X.var((0, 2, 3), correction=0))
    torch.testing.assert_close(dict(cut.state_dict()), dict(whole.state_dict()))


def test_ghosts_of_one_sample_need_maps():
    layer = build("four_things", 8, ghost_size=1)
    assert torch.isfinite(layer(X)).all()
    with pytest.raises(ValueError, match="values per channel"):
        layer(torch.randn(6, 8))


def test_gamma_and_beta_are_decayed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), build("four_things", 8), build("batch_norm", 8))
    config = {"optimizer": "sgd", "weight_decay": 0.1, "momentum": 0.0, "nesterov": False}
    decayed, spared = optimizer_for(model, config).param_groups
    assert {id(p) for p in decayed["params"]} == {
        id(model[0].weight), id(model[1].weight), id(model[1].bias)
    }  # fmt: skip
    assert len(spared["params"]) == 3
    without = nn.Sequential(build("four_things", 8, affine=False), nn.Conv2d(8, 2, 1))
    assert len(optimizer_for(without, config).param_groups) == 2


# instance_aware_batch_norm


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_threshold_that_none_exceeds_is_batch_norm(training):
    layer, torchs = after_training("instance_aware_batch_norm", k=1e6, momentum=0.1)
    y = layer.train(training)(X)
    expected = torchs.train(training)(X)
    if training:  # normalized by the unbiased variance
        unbiased = (119 / 120) ** 0.5
        expected = (expected - layer.bias[:, None, None]) * unbiased + layer.bias[:, None, None]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(layer.state_dict()), dict(torchs.state_dict()))


def test_without_a_threshold_it_is_instance_norm_with_the_unbiased_variance():
    layer, _ = after_training("instance_aware_batch_norm", k=0)
    plain = nn.functional.instance_norm(X, eps=1e-5 * 20 / 19) * (19 / 20) ** 0.5
    expected = plain * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(X), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.train()(X), expected, rtol=1e-4, atol=1e-5)


def test_an_uncorrected_training_is_that_of_torch_and_evaluation_is_corrected():
    ours = build("instance_aware_batch_norm", 8, correct_training=False)
    torchs = nn.BatchNorm2d(8)
    assert torch.equal(ours(X), torchs(X))
    shifted = X + 20
    assert (ours.eval()(shifted) - torchs.eval()(shifted)).abs().min() > 1


def test_only_the_sample_that_deviates_is_corrected():
    layer, torchs = build("instance_aware_batch_norm", 8, k=4).eval(), nn.BatchNorm2d(8).eval()
    x = torch.randn(4, 8, 16, 16)  # as the running averages are at first
    x[2] += 40
    changed = (layer(x) - torchs(x)).abs().amax((1, 2, 3)) > 1e-3
    assert changed.tolist() == [False, False, True, False]


def test_the_correction_stops_short_of_the_sample_by_k_standard_errors():
    layer = build("instance_aware_batch_norm", 1, k=4, affine=False, eps=1e-12).eval()
    x = torch.randn(1, 1, 10, 10)
    x = (x - x.mean()) / x.std() + 9  # mean 9, unbiased variance 1 as the running one
    torch.testing.assert_close(layer(x).mean(), torch.tensor(4 / 10))
    torch.testing.assert_close(layer(x).std(), torch.tensor(1.0))


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1, 1)], ids=str)
def test_where_a_sample_has_no_variance_it_is_batch_norm(shape):
    ours, x = build("instance_aware_batch_norm", 8, k=0), torch.randn(shape)
    torchs = nn.BatchNorm1d(8) if len(shape) == 2 else nn.BatchNorm2d(8)
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.eval()(x), torchs.eval()(x))
