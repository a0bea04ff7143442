"""Methods whose backward is the difficulty: whitening, moving averages of gradients, control."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from oracles.formulas import (
    At,
    Result,
    divisor,
    on_channels,
    oracle,
    over_batch,
    pooled,
    weight_oracle,
)


def rows(x: Tensor) -> Tensor:
    """N,C,* as C rows of all values of a channel."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def whitened(x: Tensor, at: At, inverse_root: Callable[[Tensor], Tensor]) -> Result:
    """ZCA of each group of channels, one group after the other."""
    values = rows(x)
    size = divisor(x.shape[1], at.params["group_size"])
    outputs, matrices = [], []
    for group, part in enumerate(values.split(size)):
        if at.training:
            centred = part - part.mean(1, keepdim=True)
            sigma = centred @ centred.T / pooled(x) + at.eps * torch.eye(size).double()
            matrix = inverse_root(sigma)
        else:
            running = at.state["running_mean"].split(size)[group]
            centred, matrix = part - running[:, None], at.state["running_whitening"][group]
        outputs.append(matrix @ centred)
        matrices.append(matrix)
    y = torch.cat(outputs).reshape(x.transpose(0, 1).shape).transpose(0, 1)
    if not at.training:
        return at.affine(y)
    changed = {name: at.state[name] for name in ("running_mean", "running_whitening")}
    share, now = at.params["momentum"], torch.stack(matrices).detach()
    changed["running_whitening"] = (1 - share) * changed["running_whitening"] + share * now
    return at.affine(y), changed | at.moved("running_mean", x.mean(over_batch(x)))


@oracle("iter_norm", {"group_size": 2, "iterations": 3, "eps": 0.1, "momentum": 0.5})
def iter_norm(x: Tensor, at: At) -> Result:
    def newton(sigma: Tensor) -> Tensor:
        """Newton's iteration on the eigenvalues: it leaves the eigenvectors as they are."""
        values, vectors = torch.linalg.eigh(sigma)
        trace = values.sum()
        p = torch.ones_like(values)
        for _ in range(at.params["iterations"]):
            p = (3 * p - p**3 * values / trace) / 2
        return vectors @ torch.diag(p / trace.sqrt()) @ vectors.T

    return whitened(x, at, newton)


@oracle("decorrelated_batch_norm", {"group_size": 2, "eps": 0.1, "momentum": 0.5})
def decorrelated_batch_norm(x: Tensor, at: At) -> Result:
    def inverse_root(sigma: Tensor) -> Tensor:
        """The coupled Newton iteration to its end: y to the root, z to its inverse."""
        one = torch.eye(len(sigma)).double()
        norm = sigma.diagonal().sum()
        y, z = sigma / norm, one
        for _ in range(40):
            step = (3 * one - z @ y) / 2
            y, z = y @ step, step @ z
        return z / norm.sqrt()

    return whitened(x, at, inverse_root)


def batch_mean(values: Tensor) -> Tensor:
    """C means over N,*."""
    return values.mean(over_batch(values))


@oracle(
    "mabn",
    {"buffer_size": 2, "warmup": 0, "hold": 1, "rmax": 1.3, "eps": 0.1, "momentum": 0.5},
    {"buffer_size": 1, "warmup": 3, "hold": 0},
    exact_gradient=False,
)
def mabn(x: Tensor, at: At) -> Result:
    if not at.training:
        return at.affine(x / on_channels((at.state["running_square"] + at.eps).sqrt(), x))
    step = int(at.state["num_batches_tracked"]) + 1
    size, warmup = at.params["buffer_size"], at.params["warmup"]
    alone = step <= size or step < warmup
    row = step % size
    squares, gradients = at.state["recent_squares"].clone(), at.state["recent_gradients"].clone()
    squares[row] = batch_mean(x.detach().square())
    chi = squares[row] if alone else squares.mean(0)
    std = (chi + at.eps).sqrt()
    z = x / on_channels(std, x)

    def replaced(g: Tensor) -> Tensor:
        gradients[row] = batch_mean(g * z.detach())
        psi = gradients[row] if alone else gradients.mean(0)
        return g - z.detach() * on_channels(psi, x)

    z.register_hook(replaced)
    r = std / (at.state["running_square"] + at.eps).sqrt()
    r = r.clamp(1 / at.params["rmax"], at.params["rmax"])
    if step <= max(at.params["hold"], warmup):
        r = torch.ones_like(r)
    state = {"recent_squares": squares, "recent_gradients": gradients}
    return at.affine(on_channels(r, x) * z), state | at.moved("running_square", chi)


@weight_oracle("mabn")
def centred(weight: Tensor) -> Tensor:
    flat = weight.flatten(1)
    return (flat - flat.sum(1, keepdim=True) / flat.shape[1]).reshape(weight.shape)


@oracle(
    "power_norm",
    {"warmup": 1, "momentum": 0.3, "gradient_momentum": 0.4, "eps": 0.1},
    {"warmup": 0},
    exact_gradient=False,
)
def power_norm(x: Tensor, at: At) -> Result:
    running = at.state["running_square"]
    if not at.training:
        return at.affine(x / on_channels((running + at.eps).sqrt(), x))
    step = int(at.state["num_batches_tracked"]) + 1
    now = batch_mean(x.detach().square())
    warm = step <= at.params["warmup"]
    z = x / on_channels(((now if warm else running) + at.eps).sqrt(), x)
    nu, share = at.state["running_gradient"].clone(), at.params["gradient_momentum"]

    def replaced(g: Tensor) -> Tensor:
        changed = g - on_channels(nu, x) * z.detach()
        nu.add_(share * batch_mean(changed * z.detach()))
        return changed

    z.register_hook(replaced)
    if warm:  # the authors' two updates, one after the other
        running = running * (step - 1) / step + now / step
    kept = 1 - at.params["momentum"]
    running = kept * running + (1 - kept) * now
    return at.affine(z), {"running_square": running, "running_gradient": nu}


@oracle(
    "online_norm",
    {"momentum": 0.2, "gradient_momentum": 0.3, "eps": 0.1},
    {"guard": "clamp", "momentum": 0.5, "gradient_momentum": 0.4},
    {"guard": "none", "gradient_momentum": 0.9},
    exact_gradient=False,
)
def online_norm(x: Tensor, at: At) -> Result:
    mean, var = at.state["running_mean"], at.state["running_var"]
    if not at.training:
        z = (x - on_channels(mean, x)) / on_channels((var + at.eps).sqrt(), x)
        return guarded(at.affine(z), at)
    momentum, control = at.params["momentum"], at.params["gradient_momentum"]
    u, v = at.state["control_u"].clone(), at.state["control_v"].clone()
    means, deviations = [], []
    for sample in x.detach().flatten(2):
        means.append(mean)
        deviations.append((var + at.eps).sqrt())
        away = sample.mean(1) - mean
        own = (sample - sample.mean(1, keepdim=True)).square().mean(1)
        var = (1 - momentum) * (var + momentum * away**2) + momentum * own
        mean = mean + momentum * away
    entry = (x + 0).flatten(2)
    z = (entry - torch.stack(means)[:, :, None]) / torch.stack(deviations)[:, :, None]

    def without_z(gradient: Tensor) -> Tensor:
        parts = []
        for g, out in zip(gradient, z.detach(), strict=True):
            parts.append(g - control * v[:, None] * out)
            v.add_((parts[-1] * out).mean(1))
        return torch.stack(parts)

    def without_one(gradient: Tensor) -> Tensor:
        parts = []
        for g in gradient:
            parts.append(g - control * u[:, None])
            u.add_(parts[-1].mean(1))
        return torch.stack(parts)

    z.register_hook(without_z)
    entry.register_hook(without_one)
    state = {"running_mean": mean, "running_var": var, "control_u": u, "control_v": v}
    return guarded(at.affine(z.reshape(x.shape)), at), state


def guarded(a: Tensor, at: At) -> Tensor:
    """Online normalization's guard: each sample by its root mean square, or limited to ±5."""
    if at.params["guard"] == "clamp":
        return a.clamp(-5, 5)
    if at.params["guard"] == "none":
        return a
    return a / (a.square().mean(tuple(range(1, a.dim())), keepdim=True) + at.eps).sqrt()
