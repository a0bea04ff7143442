from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from checks import TOLERANCE, assert_gradients, forward, set_parameters
from oracles import norms
from torch import nn

from normbench import build, registry
from normbench.registry import RegistryError, TrainingPlan

C = 3
AT_ONCE = {"hold": 0, "rmax_full": 0, "dmax_full": 0}


def pair(rng, **params):
    gamma, beta = rng.normal(1, 0.3, C), rng.normal(size=C)
    layer = set_parameters(build("batch_renorm", C, **params), weight=gamma, bias=beta)
    return layer, norms.BatchRenorm(C, momentum=params.get("momentum", 0.01)), gamma, beta


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.1, 0.2), (3.0, 5.0), (1e6, 1e6)])
def test_training_follows_algorithm_1_over_several_steps(rng, limits):
    rmax, dmax = limits
    layer, oracle, gamma, beta = pair(rng, rmax=rmax, dmax=dmax, momentum=0.3, **AT_ONCE)
    for _ in range(4):
        x = rng.normal(1, 2, (4, C, 5, 2))
        expected = oracle.train(x, gamma, beta, *oracle.corrections(x, rmax, dmax))
        np.testing.assert_allclose(forward(layer, x), expected, **TOLERANCE)
        oracle.update(x)
    np.testing.assert_allclose(layer.running_mean, oracle.mean, **TOLERANCE)
    np.testing.assert_allclose(layer.running_std, oracle.std, **TOLERANCE)
    x = rng.normal(size=(1, C, 2, 2))
    expected = oracle.evaluate(x, gamma, beta)
    np.testing.assert_allclose(forward(layer.eval(), x), expected, **TOLERANCE)


@pytest.mark.parametrize("limits", [(1.1, 0.2), (3.0, 5.0)])
def test_r_and_d_carry_no_gradient(rng, limits):
    layer, oracle, gamma, beta = pair(rng, rmax=limits[0], dmax=limits[1], **AT_ONCE)
    x = rng.normal(1, 2, (3, C, 2, 2))
    r, d = oracle.corrections(x, *limits)

    def frozen(x, weight, bias):
        return oracle.train(x, weight, bias, r, d)

    assert_gradients(layer, frozen, x, weight=gamma, bias=beta)


def test_with_r_1_and_d_0_it_is_batch_norm_in_output_and_gradient():
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    renorm = build("batch_renorm", 8, rmax=1, dmax=0, **AT_ONCE).double()
    plain = build("batch_norm", 8, eps=1e-3).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = renorm(a), plain(b)
    ya.cos().sum().backward()
    yb.cos().sum().backward()
    torch.testing.assert_close(ya, yb)
    torch.testing.assert_close(a.grad, b.grad)


def test_unclipped_training_output_is_the_evaluation_output():
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64) * 3 + 2
    layer = build("batch_renorm", 8, rmax=1e9, dmax=1e9, **AT_ONCE).double()
    layer(x * 0.5)
    evaluated = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), evaluated)


def test_unclipped_forward_is_that_of_moving_average_norm_and_the_backward_is_not():
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64) * 3 + 2
    renorm = build("batch_renorm", 8, rmax=1e9, dmax=1e9, eps=1e-12, **AT_ONCE).double()
    moving = build("moving_average_norm", 8, eps=1e-12).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = renorm(a), moving(b)
    torch.testing.assert_close(ya, yb)
    ya.sum().backward()
    yb.sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.abs().max() < 1e-12 < b.grad.abs().min()


@pytest.mark.parametrize("step", [0, 4999, 5000, 5001, 20000, 25000, 30000, 40000, 90000])
def test_the_schedule_in_steps_is_the_papers(step):
    layer = build("batch_renorm", C)
    on_device = [float(v) for v in layer.limits(torch.tensor(step))]
    assert on_device == pytest.approx(norms.renorm_limits(step, 3.0, 5.0))
    assert layer.limits(step) == pytest.approx(norms.renorm_limits(step, 3.0, 5.0))


@pytest.mark.parametrize(
    ("share", "limits"), [(0.05, (1, 0)), (0.25, (2.1428571, 5)), (0.4, (3, 5))]
)
def test_the_schedule_in_fractions_is_of_the_planned_training(share, limits):
    model = nn.Sequential(build("batch_renorm", C, schedule="fraction"))
    info = registry.get("batch_renorm")
    assert info.prepare is not None
    info.prepare(model, TrainingPlan(total_steps=2000))
    assert model[0].limits(int(2000 * share)) == pytest.approx(limits)


def test_fractions_without_a_plan_end_with_a_sentence():
    layer = build("batch_renorm", C, schedule="fraction")
    layer(torch.randn(4, C))  # the first step lies in the hold, whatever the length
    with pytest.raises(ValueError, match="how long training is: call prepare"):
        layer(torch.randn(4, C))


@pytest.mark.parametrize(
    "params",
    [{"hold": 10, "rmax_full": 5}, {"schedule": "fraction", "rmax_full": 2}, {"dmax_full": 100}],
)
def test_marks_out_of_order_are_refused(params):
    with pytest.raises(RegistryError, match="hold to come first"):
        build("batch_renorm", C, **params)


def test_share_of_active_steps_is_observed():
    layer = build("batch_renorm", C, hold=3, rmax_full=5, dmax_full=5)
    model = nn.Sequential(layer)
    for _ in range(8):  # steps 0 to 7: held up to step 3 inclusive
        layer(torch.randn(4, C, 2, 2))
    observe = registry.get("batch_renorm").observe
    assert observe is not None
    assert observe(model) == {"renorm_active_share": 0.5}


def test_a_run_inside_the_hold_reports_no_activity():
    layer = build("batch_renorm", C)
    layer(torch.randn(4, C, 2, 2))
    assert layer.active_share() == 0.0


def test_the_hold_and_the_general_path_agree():
    # one step held by the schedule, one held by limits of one that the general path applies
    x = torch.randn(4, C, 5, 5)
    held, general = (
        build("batch_renorm", C),
        build("batch_renorm", C, dmax=1e-30, rmax=1, **AT_ONCE),
    )
    torch.testing.assert_close(held(x), general(x))
    torch.testing.assert_close(held.running_std, general.running_std)


def test_loading_batch_norm_converts_the_variance():
    old = nn.BatchNorm2d(C)
    old(torch.randn(8, C, 4, 4) * 5)
    layer = build("batch_renorm", C)
    state = old.state_dict()
    layer.load_state_dict(state)
    torch.testing.assert_close(layer.running_std, torch.sqrt(old.running_var + 1e-3))
    assert layer.num_batches_tracked == 0
    assert "running_var" in state


def test_its_own_state_continues_the_schedule():
    first = build("batch_renorm", C)
    for _ in range(3):
        first(torch.randn(4, C))
    second = build("batch_renorm", C)
    second.load_state_dict(first.state_dict())
    assert second.num_batches_tracked == 3
    assert torch.equal(second.running_std, first.running_std)


def test_state_names():
    names = ["weight", "bias", "running_mean", "running_std", "num_batches_tracked"]
    assert list(build("batch_renorm", C).state_dict()) == names


def test_first_step_far_from_the_initial_state_stays_finite_in_half():
    layer = build("batch_renorm", C, **AT_ONCE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = (torch.randn(4, C, 3, 3) * 1e4 + 1e4).bfloat16().requires_grad_()
        y = layer(x)
    y.float().sum().backward()
    assert torch.isfinite(y).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
