"""Methods of single samples and single values: RMS, filter response, EvoNorm, tanh, erf, LRN."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles.formulas import At, Result, moments, on_channels, oracle, over_space


@oracle("rms_norm", {"eps": 0.1})
def rms_norm(x: Tensor, at: At) -> Result:
    mean_square = (x * x).sum(1, keepdim=True) / x.shape[1]
    return on_channels(at.state["weight"], x) * x / (mean_square + at.eps).sqrt()


IN_ITS_PLACE = "the method is itself the nonlinearity, in the place of the activation at the slot"


@oracle(
    "filter_response_norm",
    {"eps": 0.1},
    {"learn_eps": True},
    exempt={"test_the_activation_is_applied_by_owners_and_ignored_by_others": IN_ITS_PLACE},
)
def filter_response_norm(x: Tensor, at: At) -> Result:
    eps = at.state["learned_eps"].abs() if at.params["learn_eps"] else at.eps
    mean_square = moments(x * x, over_space(x))[0]
    y = at.affine(x / (mean_square + eps).sqrt())
    if at.act is None:
        return y
    tau = on_channels(at.state["tau"], y).expand_as(y)
    return torch.where(y > tau, y, tau)
