r"""Proxy Normalization on layer norm (groups=1) or group norm, in our Triton kernels.

    out = (φ(gamma·y + beta) − E φ(u))/√(Var φ(u) + proxy_eps),
    u = gamma·((1 + g̃)·ξ + b̃) + beta,  ξ standard normal

Equation, parameters and state are `proxy_norm`'s. On CUDA devices statistics, affine, activation
and the proxy's affine take one pass to read and one to write (docs/decisions/005). Elsewhere, in
float64, and for activations that the kernels do not know the layer is `proxy_norm`.

Labatie, Masters, Eaton-Rosen & Luschi, "Proxy-Normalizing Activations to Match Batch
Normalization while Removing Batch Dependence", NeurIPS 2021, arXiv:2106.03743.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.fused.activations import code_of
from normbench.kernels.fused.dispatch import fallback
from normbench.kernels.fused.layer import KernelLayer
from normbench.kernels.grouped import check_groups
from normbench.methods.proxy_norm import ProxyNorm
from normbench.registry import get, register

EAGER = get("proxy_norm")


@register(
    "proxy_norm_triton",
    title="Proxy Normalization, fused (Triton)",
    family="group",
    equation=r"\mathrm{out} = \frac{\varphi(\gamma y+\beta)-\mathbb{E}\,\varphi(u)}"
    r"{\sqrt{\mathrm{Var}\,\varphi(u)+\epsilon_p}},\quad"
    r" u = \gamma\,\big((1+\tilde g)\,\xi+\tilde b\big)+\beta,\ \xi\sim\mathcal N(0,1)",
    params=EAGER.params,
    citation=EAGER.citation,
    consumes_activation=True,
    fallback=fallback,
    policy="As proxy_norm; kernels and activations as batch_norm_triton.",
)
class ProxyNormTriton(KernelLayer, ProxyNorm):
    """Proxy norm in one pass to read and one to write on CUDA devices; `proxy_norm` elsewhere."""

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
        super().__init__(
            num_features, act=act, groups=groups, eps=eps, proxy_eps=proxy_eps, exact=exact
        )
        self.find_devices()

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a group has a single value."""
        code = code_of(self.act)
        if code is None or not self.takes(x):
            return super().forward(x)
        from normbench.kernels.fused import proxy_norm as kernels  # Triton is needed from here on

        self.check(x)
        check_groups(x, self.groups)
        return kernels.proxy_norm(
            x, self.weight, self.bias, self.proxy_weight, self.proxy_bias,
            code, self.groups, self.eps, self.proxy_eps, self.exact,
        )  # fmt: skip
