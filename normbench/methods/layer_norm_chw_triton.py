r"""Layer Normalization over channels and positions with the activation, in our Triton kernels.

    y = φ(gamma·(x − μ)/√(σ² + eps) + beta)

Equation, parameters and state are `layer_norm_chw`'s. On CUDA devices statistics, affine and
activation take one pass to read and one to write (docs/decisions/005); the backward recomputes φ′
from x instead of keeping what φ was given. Shortcuts are added outside. Elsewhere, and in float64,
the layer is `layer_norm_chw` followed by the activation.

Ba, Kiros & Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.fused.dispatch import fallback
from normbench.kernels.fused.layer import FusedNorm
from normbench.methods.layer_norm_chw import LayerNormCHW
from normbench.registry import get, register

EAGER = get("layer_norm_chw")


@register(
    "layer_norm_chw_triton",
    title="Layer Normalization over C, H, W, fused (Triton)",
    family="layer",
    equation=r"y = \varphi\Big(\gamma\,\frac{x-\mu_{CHW}}{\sqrt{\sigma^2_{CHW}+\epsilon}}"
    r"+\beta\Big)",
    params=EAGER.params,
    citation=EAGER.citation,
    consumes_activation=True,
    fallback=fallback,
    policy="As layer_norm_chw; kernels and activations as batch_norm_triton, but no shortcuts.",
)
class LayerNormCHWTriton(FusedNorm, LayerNormCHW):
    """Layer norm and activation in one pass on CUDA devices; `layer_norm_chw` elsewhere."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine)
        self.own(act)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a sample is a single value."""
        if not self.takes(x) or not x.numel():  # an empty batch has nothing to launch for
            return self.finish(super().forward(x), None)
        from normbench.kernels.fused import group_norm as kernels  # Triton is needed from here on

        self.check(x)
        affine = (self.weight, self.bias)
        return self.fused(x, None, lambda _, act: kernels.group_norm(x, *affine, 1, self.eps, act))
