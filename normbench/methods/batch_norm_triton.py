r"""Batch Normalization with the activation and the residual of its slot, in our Triton kernels.

    y = φ(gamma·(x − μ)/√(σ² + eps) + beta + residual)

The equation is `batch_norm`'s, and so are parameters, state and checkpoints. On CUDA devices one
fused pass replaces the chain of normalization, addition and activation (docs/decisions/005); the
backward recomputes φ′ from x instead of keeping what φ was given. Elsewhere, and in float64, the
layer is `batch_norm` followed by the activation.

Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", ICML 2015, arXiv:1502.03167.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.fused.dispatch import fallback
from normbench.kernels.fused.layer import FusedNorm
from normbench.methods.batch_norm import BatchNorm
from normbench.registry import get, register

EAGER = get("batch_norm")


@register(
    "batch_norm_triton",
    title="Batch Normalization, fused (Triton)",
    family="batch",
    equation=r"y = \varphi\Big(\gamma\,\frac{x-\mu_{NHW}}{\sqrt{\sigma^2_{NHW}+\epsilon}}+\beta"
    r"+\mathrm{residual}\Big)",
    params=EAGER.params,
    citation=EAGER.citation,
    consumes_activation=True,
    fuses_residual=True,
    fallback=fallback,
    policy="As batch_norm. The kernels take float32, float16 and bfloat16 on CUDA devices and fuse "
    "ReLU, SiLU, GELU and Hardswish; all else is computed by batch_norm, then the activation.",
)
class BatchNormTriton(FusedNorm, BatchNorm):
    """Batch norm, residual and activation in one pass on CUDA devices; `batch_norm` elsewhere."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, momentum=momentum)
        self.own(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """N,C,* to the same shape: act(norm(x) + residual).

        Raises:
            ValueError: for one value per channel in training.
        """
        if not self.takes(x):
            return self.finish(super().forward(x), residual)
        return self.fused(x, residual, lambda r, act: self._kernel(x, r, act))

    def _kernel(self, x: Tensor, residual: Tensor | None, act: int) -> Tensor:
        from normbench.kernels.fused import batch_norm as kernels  # Triton is needed from here on

        affine = (self.weight, self.bias, self.running_mean, self.running_var)
        if not self.training:
            self.check(x)
            return kernels.evaluated(x, residual, *affine, self.eps, act)
        self.check_batch(x)
        counted = self.num_batches_tracked
        return kernels.batch_norm(x, residual, *affine, self.momentum, self.eps, act, counted)
