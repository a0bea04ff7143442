r"""Proxy Normalization, on Layer Normalization (groups=1) or Group Normalization.

    out = (φ(gamma·y + beta) − E φ(u))/√(Var φ(u) + proxy_eps),
    u = gamma·((1 + g̃)·ξ + b̃) + beta,  ξ standard normal

y is the group norm of x, not affine, with an eps of its own. The moments are taken over 200
midpoint quantiles of ξ, as in the authors' code, or exactly (`exact`: in closed form for ReLU,
else a 32-point Gauss-Hermite rule). g̃ is `proxy_weight`, b̃ `proxy_bias`, both 0 at first; the
paper decays only these two. Without an activation to normalize there is no proxy: as in the
authors' EfficientNet the scale stays and the shift goes, out = gamma·y.

Labatie, Masters, Eaton-Rosen & Luschi, "Proxy-Normalizing Activations to Match Batch
Normalization while Removing Batch Dependence", NeurIPS 2021, arXiv:2106.03743.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float, keep_format
from normbench.kernels.grouped import group_norm, largest_group_count
from normbench.kernels.proxy import Learned, exact_proxy_norm, hermite, proxy_norm, quantiles
from normbench.registry import Citation, Param, register


@register(
    "proxy_norm",
    title="Proxy Normalization",
    family="group",
    equation=r"\mathrm{out} = \frac{\varphi(\gamma y+\beta)-\mathbb{E}\,\varphi(u)}"
    r"{\sqrt{\mathrm{Var}\,\varphi(u)+\epsilon_p}},\quad"
    r" u = \gamma\,\big((1+\tilde g)\,\xi+\tilde b\big)+\beta,\ \xi\sim\mathcal N(0,1)",
    params={
        "groups": Param("groups of the norm below; 1 is layer norm", int, minimum=1),
        "eps": Param("added to the norm's variance", minimum=0, exclusive_minimum=True),
        "proxy_eps": Param("added to the proxy's variance", minimum=0, exclusive_minimum=True),
        "exact": Param("exact moments in place of the authors' 200 quantiles", kind=bool),
    },
    citation=Citation(
        "Proxy-Normalizing Activations to Match Batch Normalization while Removing Batch "
        "Dependence",
        ("Labatie, Antoine", "Masters, Dominic", "Eaton-Rosen, Zach", "Luschi, Carlo"),
        2021,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "2106.03743",
    ),
    consumes_activation=True,
    policy="Without an activation at the slot there is no proxy: gamma·y, without shift. Groups "
    "as group_norm.",
)
class ProxyNorm(ChannelNorm):
    """Group norm whose activation is normalized by the moments it has on a Gaussian proxy."""

    decayed_parameters = ("proxy_weight", "proxy_bias")
    weight: nn.Parameter
    proxy_weight: nn.Parameter | None
    proxy_bias: nn.Parameter | None
    _nodes: Tensor
    _ones: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        groups: int = 1,
        eps: float | None = None,
        proxy_eps: float = 0.03,
        exact: bool = False,
    ) -> None:
        super().__init__(num_features, eps, True)
        self.groups = largest_group_count(num_features, groups)
        self.proxy_eps, self.exact, self.act = proxy_eps, exact, act
        coupled = act is not None
        if not coupled:
            self.bias = None
        for name in ("proxy_weight", "proxy_bias"):
            zeros = nn.Parameter(torch.zeros(num_features)) if coupled else None
            self.register_parameter(name, zeros)
        nodes = torch.stack(hermite()) if exact else quantiles()
        self.register_buffer("_nodes", nodes.to(self.weight.dtype), persistent=False)
        self.register_buffer("_ones", torch.ones(num_features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a group has a single value."""
        self.check(x)
        if self.act is None or self.bias is None:
            return group_norm(x, self.groups, self.weight, None, self.eps)
        assert self.proxy_weight is not None
        assert self.proxy_bias is not None
        parameters = (self.weight, self.bias, self.proxy_weight, self.proxy_bias)
        kernel = exact_proxy_norm if self.exact else proxy_norm
        y = kernel(
            as_float(x), Learned(*map(as_float, parameters)), as_float(self._nodes),
            as_float(self._ones), self.act, self.groups, self.eps, self.proxy_eps,
        )  # fmt: skip
        return keep_format(y, x).to(x.dtype)

    def extra_repr(self) -> str:
        """Also the groups and the proxy's eps."""
        return f"{super().extra_repr()}, groups={self.groups}, proxy_eps={self.proxy_eps:g}"
