"""The layer as a module: parameters, state, copies, compilation, its activation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from normbench import registry


class Probe(nn.Module):
    """A SiLU that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.silu(x)


def trained(case):
    layer = case.build()
    for _ in range(2):
        layer(torch.randn(4, 16, 5, 5, requires_grad=True)).square().mean().backward()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return layer


def test_affine_parameters_are_flat_and_start_as_the_identity(case):
    parameters = dict(case.build().named_parameters())
    assert all(p.ndim == 1 for p in parameters.values())
    if "weight" in parameters:
        assert torch.equal(parameters["weight"], torch.ones(16))
    if "bias" in parameters:
        assert torch.equal(parameters["bias"], torch.zeros(16))


def test_state_dict_round_trip(case):
    layer, fresh = trained(case), case.build()
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(4, 16, 5, 5)
    assert torch.equal(fresh.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
def test_a_copy_behaves_alike_and_shares_nothing(case, duplicate):
    layer = trained(case)
    twin = duplicate(layer)
    x = torch.randn(4, 16, 5, 5)
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(twin.eval()(x), layer.eval()(x))
    owned = {t.data_ptr() for t in layer.state_dict().values()}
    assert owned.isdisjoint(t.data_ptr() for t in twin.state_dict().values())


def test_compiled_without_graph_breaks_it_is_the_same(case):
    torch.compiler.reset()
    layer = case.build()
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    for _ in range(2):
        x = torch.randn(4, 16, 5, 5)
        torch.testing.assert_close(compiled(x), layer(x))
    twin = compiled._orig_mod.state_dict()
    torch.testing.assert_close(dict(twin), dict(layer.state_dict()))


def test_traced_through_autograd_it_is_the_same(case):
    torch.compiler.reset()
    layer = case.build()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    a = torch.randn(4, 16, 5, 5, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    compiled(a).square().sum().backward()
    layer(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


# Parameters with which a layer uses its running state while it trains.
IN_USE = {"batch_renorm": {"hold": 0, "rmax_full": 0, "dmax_full": 0}}


@pytest.mark.slow
def test_compiled_by_inductor_gradients_and_state_are_the_same_over_steps(case):
    """A compiled backward may recompute from buffers that the forward has moved on since."""
    torch.compiler.reset()
    layer = case.build(**IN_USE.get(case.name, {}))
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    for _ in range(3):
        a = (3 * torch.randn(4, 16, 5, 5) + 1).requires_grad_()
        b = a.detach().clone().requires_grad_()
        compiled(a).pow(3).sum().backward()
        layer(b).pow(3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        dict(compiled._orig_mod.state_dict()), dict(layer.state_dict()), rtol=1e-4, atol=1e-4
    )


def test_the_activation_is_applied_by_owners_and_ignored_by_others(case):
    probe = Probe()
    layer = registry.build(case.name, 16, act=probe)
    layer(torch.randn(4, 16, 5, 5))
    assert (probe.calls > 0) is case.info.consumes_activation


def test_eps_and_affine_are_taken_where_they_are_parameters(case):
    if "eps" in case.info.params:
        assert registry.build(case.name, 16, eps=0.25).eps == 0.25
    if "affine" in case.info.params:
        assert registry.build(case.name, 16, affine=False).weight is None
        registry.build(case.name, 16, affine=False)(torch.randn(2, 16, 4, 4)).sum()


def test_without_affine_there_is_nothing_to_learn_and_gradients_flow(case):
    if "affine" not in case.info.params:
        pytest.skip(f"{case.name} has no parameter affine")
    layer = registry.build(case.name, 16, affine=False)
    x = torch.randn(4, 16, 5, 5, requires_grad=True)
    layer(x).cos().sum().backward()
    assert not list(layer.parameters())
    assert torch.isfinite(x.grad).all()


def test_weight_side_takes_a_convolution_and_its_gradient_reaches_what_is_learned(case):
    if case.info.weight is None:
        pytest.skip(f"{case.name} has no weight side")
    conv = nn.Conv2d(3, 8, 3)
    conv = case.info.weight(conv, **registry.resolve_params(case.name)) or conv
    copy.deepcopy(conv)(torch.randn(2, 3, 6, 6)).square().sum().backward()
    conv(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in conv.parameters())
