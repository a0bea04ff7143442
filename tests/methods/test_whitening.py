"""iter_norm and decorrelated_batch_norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks import forward, set_parameters
from torch import nn
from two_sgd_steps import losses_of_two_steps

from normbench import build

METHODS = ["iter_norm", "decorrelated_batch_norm"]


def correlated(rng, channels=8, n=4, side=6):
    """Channels mixed by a random matrix, away from 0."""
    x = rng.normal(size=(n, channels, side, side))
    return np.einsum("dc,nchw->ndhw", rng.normal(size=(channels, channels)), x) + 3


def covariance(y):
    rows = np.moveaxis(np.asarray(y), 1, 0).reshape(y.shape[1], -1)
    return np.cov(rows, bias=True)


def zca(x, eps=1e-5):
    """Whitened by the eigendecomposition of the covariance."""
    values, vectors = np.linalg.eigh(covariance(x) + eps * np.eye(x.shape[1]))
    matrix = vectors @ np.diag(values**-0.5) @ vectors.T
    return np.einsum("dc,nchw->ndhw", matrix, x - x.mean((0, 2, 3), keepdims=True))


def test_the_exact_method_is_the_eigendecompositions_whitening(rng):
    x = correlated(rng)
    y = forward(build("decorrelated_batch_norm", 8).double(), x)
    np.testing.assert_allclose(y, zca(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("dtype", "end"), [("double", 1e-8), ("float", 1e-4)])
def test_newtons_iteration_tends_to_the_eigendecompositions_whitening(rng, dtype, end):
    x = correlated(rng)
    given, expected = getattr(torch.from_numpy(x), dtype)(), zca(x)

    def distance(iterations):
        layer = getattr(build("iter_norm", 8, iterations=iterations), dtype)()
        return np.abs(layer(given).detach().numpy() - expected).max()

    found = [distance(t) for t in (1, 3, 5, 8, 12, 30)]
    assert sorted(found, reverse=True) == found
    assert found[2] > 0.1  # T = 5 is not there yet
    assert found[-1] < end  # and nothing grows on the way


def test_the_iteration_is_the_papers(rng):
    x = correlated(rng)
    sigma = covariance(x) + 1e-5 * np.eye(8)
    p = np.eye(8)
    for _ in range(5):
        p = (3 * p - p @ p @ p @ sigma / np.trace(sigma)) / 2
    centred = x - x.mean((0, 2, 3), keepdims=True)
    expected = np.einsum("dc,nchw->ndhw", p / np.trace(sigma) ** 0.5, centred)
    np.testing.assert_allclose(forward(build("iter_norm", 8).double(), x), expected, 1e-9, 1e-9)


def test_five_iterations_leave_no_direction_larger_than_one(rng):
    values = np.linalg.eigvalsh(
        covariance(forward(build("iter_norm", 8).double(), correlated(rng)))
    )
    assert values.max() < 1 + 1e-9
    assert values.min() < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_one_channel_are_batch_norm_in_output_and_gradient(method):
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64) * 3 + 2
    layers = build(method, 6, group_size=1).double(), build("batch_norm", 6).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = layers[0](a), layers[1](b)
    torch.testing.assert_close(ya, yb)
    ya.cos().sum().backward()
    yb.cos().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("method", METHODS)
def test_channels_are_whitened_within_groups_alone(rng, method):
    x = correlated(rng)
    layer = build(method, 8, group_size=4).double()
    changed = x.copy()
    changed[:, 4:] *= rng.normal(size=(4, 4, 6, 6))
    np.testing.assert_array_equal(forward(layer, x)[:, :4], forward(layer, changed)[:, :4])


@pytest.mark.parametrize(
    ("method", "channels", "size"),
    [
        ("iter_norm", 256, 64), ("iter_norm", 96, 48), ("iter_norm", 24, 24), ("iter_norm", 67, 1),
        ("decorrelated_batch_norm", 64, 16), ("decorrelated_batch_norm", 24, 12),
    ],
)  # fmt: skip
def test_a_group_is_the_largest_divisor_of_the_channels(method, channels, size):
    layer = build(method, channels)
    assert layer.running_whitening.shape == (channels // size, size, size)
    assert f"groups={channels // size}" in repr(layer)


def test_equal_eigenvalues_leave_the_exact_gradient_finite_and_right():
    # Columns of a Hadamard matrix: the covariance is the identity, all eigenvalues are equal.
    two = torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
    x = torch.kron(two, torch.kron(two, two))[:, 1:4].contiguous().requires_grad_()
    layer = build("decorrelated_batch_norm", 3).double()
    assert torch.equal(x.T @ x, 8 * torch.eye(3, dtype=torch.float64))
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("method", METHODS)
def test_fewer_values_than_channels_stay_finite_in_float32(method):
    # Rounding makes the covariance's missing eigenvalues negative, by far more than eps.
    x = (torch.randn(3, 16) * 1e4).requires_grad_()
    y = build(method, 16)(x)
    y.cos().sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_training_shows_its_nan_and_not_an_error(method):
    x = torch.randn(4, 4, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    layer = build(method, 4, group_size=2)
    y = layer(x)
    assert y[:, :2].isnan().all()
    assert torch.isfinite(y[:, 2:]).all()


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_whitens_by_the_running_matrix(rng, method):
    layer = build(method, 8, momentum=1.0).double()
    x = correlated(rng)
    trained = forward(layer, x)
    np.testing.assert_allclose(forward(layer.eval(), x), trained, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_norms_averages_become_a_diagonal_matrix(rng, method):
    old = nn.BatchNorm2d(8).double()
    old(torch.from_numpy(correlated(rng)))
    layer = build(method, 8, group_size=4).double()
    layer.load_state_dict(old.state_dict())
    x = torch.randn(2, 8, 3, 3).double()
    torch.testing.assert_close(layer.eval()(x), old.eval()(x))


@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_statistics_are_not_taken_in_half(method):
    x = torch.randn(8, 16, 6, 6) + 10
    expected = build(method, 16)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = build(method, 16)(x)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("method", METHODS)
def test_one_value_per_channel_is_refused(method):
    with pytest.raises(ValueError, match="2 values per channel"):
        build(method, 4)(torch.randn(1, 4, 1, 1))


@pytest.mark.parametrize("method", METHODS)
def test_gamma_and_beta_act_after_whitening(rng, method):
    gamma, beta = rng.normal(size=8), rng.normal(size=8)
    x = correlated(rng)
    plain = forward(build(method, 8).double(), x)
    layer = set_parameters(build(method, 8), weight=gamma, bias=beta)
    expected = gamma[:, None, None] * plain + beta[:, None, None]
    np.testing.assert_allclose(forward(layer, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains(architecture, method):
    _, losses = losses_of_two_steps(architecture, method)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
