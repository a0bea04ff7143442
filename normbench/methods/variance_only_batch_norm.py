r"""Variance-only Batch Normalization: batch norm without centring.

    y = gamma·x/√(σ² + eps) + beta

σ² (biased) is the batch's variance about its mean, as in batch norm; only the mean stays in. Not
the second moment E[x²] by which MABN and Power Norm divide, which shrinks a channel with a large
mean: here y has variance gamma² whatever the mean. It is what BN becomes when one of its two steps
is taken away (mean_only_batch_norm takes the other), and is called Variance Normalization by Lubana
et al. In evaluation σ² is the running average, unbiased as batch norm's here (in their code it is
biased in both). The running mean is kept too, though nothing is centred by it, so that state goes
to and from a batch norm.

Lubana, Dick & Tanaka, "Beyond BatchNorm: Towards a Unified Understanding of Normalization in Deep
Learning", NeurIPS 2021, arXiv:2106.05956.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import as_float
from normbench.kernels.moments import moments, move, standardize, unbiased
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "variance_only_batch_norm",
    title="Variance-only Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x}{\sqrt{\sigma^2_{NHW}+\epsilon}}+\beta",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Beyond BatchNorm: Towards a Unified Understanding of Normalization in Deep Learning",
        ("Lubana, Ekdeep Singh", "Dick, Robert P.", "Tanaka, Hidenori"),
        2021,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "2106.05956",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses.",
)
class VarianceOnlyBatchNorm(RunningNorm):
    """Divides each channel by the batch's standard deviation and leaves its mean in."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check_batch(x) if self.training else self.check(x)
        wide = as_float(x)
        if self.training:
            mean, var = moments(wide)
            self.num_batches_tracked.add_(1)
            move(self.running_mean, mean, self.momentum)
            move(self.running_var, unbiased(var, x.numel() // x.shape[1]), self.momentum)
        else:
            var = as_float(self.running_var)
        return standardize(wide, torch.zeros_like(var), var, self.weight, self.bias, self.eps).to(
            x.dtype
        )
