"""Methods whose backward is the difficulty: whitening, moving averages of gradients, control."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from oracles.formulas import (
    At,
    Result,
    divisor,
    oracle,
    over_batch,
    pooled,
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
