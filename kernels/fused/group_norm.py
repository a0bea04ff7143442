"""Group norm and layer norm over C,H,W with the activation that follows: ProxyNorm's kernels.

Imports no Triton before a kernel is launched.
"""

from __future__ import annotations

from torch import Tensor

from normbench.kernels.fused.activations import IDENTITY
from normbench.kernels.fused.proxy_operators import normalized


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    act: int = IDENTITY,
) -> Tensor:
    r"""φ(gamma·(x − μ_g)/√(σ²_g + eps) + beta), biased variance, per sample and group.

    The result has x's type and memory format; statistics are float32.

    Args:
        x: N,C,* input of 2 to 5 dims, float32, float16 or bfloat16.
        weight: gamma, C values; None for 1.
        bias: beta, C values; None for 0.
        groups: divides C. 1 is layer norm over C,H,W.
        eps: added to the variance, inside the root.
        act: code of φ (`activations.code_of`).

    Raises:
        ValueError: if the batch is empty, a group pools a single value, the groups do not divide
            C, a parameter has not C values, or a sample has 2³¹.
    """
    return normalized(x, (weight, bias, None, None), act, groups, eps)
