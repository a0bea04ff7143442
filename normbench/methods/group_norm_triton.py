r"""Group Normalization with the activation of its slot, in our Triton kernels.

    y = φ(gamma·(x − μ_g)/√(σ²_g + eps) + beta)

Equation, groups, parameters and state are `group_norm`'s. On CUDA devices statistics, affine and
activation take one pass to read and one to write (docs/decisions/005); the backward recomputes φ′
from x instead of keeping what φ was given. Shortcuts are added outside. Elsewhere, and in float64,
the layer is `group_norm` followed by the activation.

Wu & He, "Group Normalization", ECCV 2018, arXiv:1803.08494.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.fused.dispatch import fallback
from normbench.kernels.fused.layer import FusedNorm
from normbench.methods.group_norm import GroupNorm, observe
from normbench.registry import get, register

EAGER = get("group_norm")


@register(
    "group_norm_triton",
    title="Group Normalization, fused (Triton)",
    family="group",
    equation=r"y = \varphi\Big(\gamma\,\frac{x-\mu_{g}}{\sqrt{\sigma^2_{g}+\epsilon}}+\beta\Big)",
    params=EAGER.params,
    citation=EAGER.citation,
    consumes_activation=True,
    fallback=fallback,
    observe=observe,
    policy="As group_norm; kernels and activations as batch_norm_triton, but no shortcuts.",
)
class GroupNormTriton(FusedNorm, GroupNorm):
    """Group norm and activation in one pass on CUDA devices; `group_norm` elsewhere."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        groups: int = 32,
        eps: float | None = None,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, groups=groups, eps=eps, affine=affine)
        self.own(act)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a group has a single value."""
        if not self.takes(x) or not x.numel():  # an empty batch has nothing to launch for
            return self.finish(super().forward(x), None)
        from normbench.kernels.fused import group_norm as kernels  # Triton is needed from here on

        self.check(x)
        affine = (self.weight, self.bias)
        return self.fused(
            x, None, lambda _, act: kernels.group_norm(x, *affine, self.groups, self.eps, act)
        )
