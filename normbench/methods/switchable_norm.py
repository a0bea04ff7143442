r"""Switchable Normalization.

    y = gamma·(x − μ)/√(σ² + eps) + beta
    μ = Σ_k w_k·μ_k,  σ² = Σ_k w'_k·σ²_k,  k in (instance, layer, batch)

w = softmax(mean_weight) and w' = softmax(var_weight), three numbers a layer each, equal at first.
Layer and batch moments come from the instance moments: μ_ln is the mean of μ_in over channels and
σ²_ln that of σ²_in + μ²_in, less μ²_ln; batch moments the same over samples. The paper's σ²_in is
biased (1/HW). The authors' code, with which its results were measured, has 1/(HW − 1), and so has
this; σ²_ln and σ²_bn take the difference over. Evaluation: running averages of μ_bn and σ²_bn,
the weight of the new batch 0.1 (the code says momentum 0.9, that of the old). They start at 0
and 1, as in `nn.BatchNorm2d`; the code has 0 for both. The code's other estimate, the plain
average over batches passed through the trained network, is a recalibration and not built in.

Luo, Ren, Peng, Zhang & Li, "Differentiable Learning-to-Normalize via Switchable Normalization",
ICLR 2019, arXiv:1806.10779.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import as_float
from normbench.kernels.moments import (
    from_rows,
    moments,
    move,
    pooled,
    sample_rows,
    standardize,
    unbiased,
)
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "switchable_norm",
    title="Switchable Normalization",
    family="mixture",
    equation=r"y = \gamma\,\frac{x-\sum_k w_k\mu_k}{\sqrt{\sum_k w'_k\sigma^2_k+\epsilon}}+\beta,"
    r"\quad k\in\{\mathrm{IN},\mathrm{LN},\mathrm{BN}\},\ w=\mathrm{softmax}(\lambda),\ "
    r"w'=\mathrm{softmax}(\lambda')",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Differentiable Learning-to-Normalize via Switchable Normalization",
        ("Luo, Ping", "Ren, Jiamin", "Peng, Zhanglin", "Zhang, Ruimao", "Li, Jingyu"),
        2019,
        "International Conference on Learning Representations (ICLR)",
        "1806.10779",
    ),
    policy="1×1 maps and N,C input have no instance statistics: as the authors' 1-D layer it mixes "
    "layer and batch alone there, with biased variances where that layer has unbiased ones. In "
    "training a channel needs two values (N·H·W), else it refuses.",
)
class SwitchableNorm(RunningNorm):
    """Normalizes by a learned mixture of instance, layer and batch statistics."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, True, momentum)
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check_batch(x) if self.training else self.check(x)
        rows = sample_rows(as_float(x))
        mean_in, var_in = (m.view(x.shape[:2]) for m in moments(rows))
        var_in = unbiased(var_in, rows.shape[2])
        mean_ln, var_ln = pooled(mean_in, var_in, 1)
        if self.training:
            mean_bn, var_bn = pooled(mean_in, var_in, 0)
            self.num_batches_tracked.add_(1)
            move(self.running_mean, mean_bn[0], self.momentum)
            move(self.running_var, var_bn[0], self.momentum)
        else:
            mean_bn, var_bn = as_float(self.running_mean)[None], as_float(self.running_var)[None]
        means, variances = [mean_ln, mean_bn], [var_ln, var_bn]
        if rows.shape[2] > 1:
            means, variances = [mean_in, *means], [var_in, *variances]
        mean, var = mixture(self.mean_weight, means), mixture(self.var_weight, variances)
        return from_rows(standardize(rows, mean, var, self.weight, self.bias, self.eps), x)


def mixture(logits: Tensor, values: list[Tensor]) -> Tensor:
    """The values weighted by the softmax of the last logits, one for each."""
    weights = torch.softmax(as_float(logits)[-len(values) :], 0)
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
