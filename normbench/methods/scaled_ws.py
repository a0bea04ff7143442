r"""Scaled Weight Standardization, without normalization of activations.

    Ŵ = gain·gamma_φ·(W − μ_w)/√max(σ²_w·fan_in, 1e-4),    y = gamma·x + beta  at the slots

per output filter over its fan-in, σ²_w biased, `gain` learned and 1 at first; the floor under the
root is the authors' (timm's ScaledStdConv2d adds 1e-6 to σ²_w). gamma_φ keeps the variance through
the activation φ that `nonlinearity` names: the authors' constants, which are estimates from samples
of 1/√Var φ(ξ), ξ standard normal (1.7129 in closed form for ReLU). The authors multiply it to the
activation's output, which is the same for the convolution that follows; timm and this multiply it
to the weight, so that it also acts on convolutions that no activation precedes.

The other half of a normalizer-free ResNet, x + alpha·f(x/beta) with its bookkeeping of variances,
is a change of blocks and no slot's: it is not done here. A zero-initialised gamma at a slot, the
skip-init gain of NF-Nets, is kept.

Brock, De & Smith, "Characterizing signal propagation to close the performance gap in unnormalized
ResNets", ICLR 2021, arXiv:2101.08692.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbench.kernels.channels import as_float
from normbench.methods.none import NoNorm
from normbench.registry import Citation, Param, register

FLOOR = 1e-4
"""Smallest σ²_w·fan_in."""

GAMMAS = {
    "relu": 1.7139588594436646,
    "identity": 1.0,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "leaky_relu": 1.70590341091156,
    "relu6": 1.7131484746932983,
    "silu": 1.7881293296813965,
    "tanh": 1.5939117670059204,
}
"""gamma_φ as the authors publish it."""


class ScaledStandardized(nn.Module):
    """The parametrization: a weight to its scaled standardized form, with a gain per filter."""

    def __init__(self, weight: Tensor, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        ones = torch.ones_like(weight.detach().flatten(1)[:, 0])
        self.gain = nn.Parameter(ones, requires_grad=weight.requires_grad)  # frozen as the weight

    def forward(self, weight: Tensor) -> Tensor:
        """For a weight of shape O,I,*; computed in float32 or wider."""
        rows = as_float(weight).flatten(1)
        var, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
        scale = torch.rsqrt((var * rows.shape[1]).clamp_min(FLOOR)) * self.gamma
        scaled = (rows - mean) * (scale * as_float(self.gain).unsqueeze(1))
        return scaled.to(weight.dtype).view_as(weight)


def standardize(conv: nn.Module, nonlinearity: str, **_: object) -> None:
    """Puts the parametrization on a convolution."""
    weight = conv.weight
    assert isinstance(weight, Tensor)
    parametrization = ScaledStandardized(weight, GAMMAS[nonlinearity])
    parametrize.register_parametrization(conv, "weight", parametrization)


@register(
    "scaled_ws",
    title="Scaled Weight Standardization",
    family="weight",
    equation=r"\hat W_{o} = g_{o}\,\gamma_{\varphi}\,\frac{W_{o}-\mu_{o}}{\sigma_{o}\sqrt{n}},"
    r"\quad y = \gamma\,(\hat W * x)+\beta",
    params={
        "nonlinearity": Param("activation whose gain is used", str, choices=tuple(GAMMAS)),
        "affine": Param("learn scale and shift at the slots", kind=bool),
    },
    citation=Citation(
        "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
        ("Brock, Andrew", "De, Soham", "Smith, Samuel L."),
        2021,
        "International Conference on Learning Representations (ICLR)",
        "2101.08692",
    ),
    weight=standardize,
    policy="Slots only scale and shift, and are defined for every input. Residual branches are not "
    "scaled by alpha and beta as in NF-Nets: that cannot be done from slots. Convolutions whose "
    "filters are a single number, and those that standardize already, are left alone.",
)
class ScaledWS(NoNorm):
    """Standardizes filters to preserve variance; slots scale and shift, without statistics."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        nonlinearity: str = "relu",
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, affine=affine is not False)
