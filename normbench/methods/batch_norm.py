r"""Batch Normalization.

    y = gamma·(x − μ)/√(σ² + eps) + beta

μ and σ² (biased) over N,H,W of the batch in training; in evaluation their running averages, the
variance's unbiased, as in `nn.BatchNorm2d`.

Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", ICML 2015, arXiv:1502.03167.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "batch_norm",
    title="Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mu_{NHW}}{\sqrt{\sigma^2_{NHW}+\epsilon}}+\beta",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Batch Normalization: Accelerating Deep Network Training by Reducing Internal "
        "Covariate Shift",
        ("Ioffe, Sergey", "Szegedy, Christian"),
        2015,
        "International Conference on Machine Learning (ICML)",
        "1502.03167",
    ),
    policy="In training a channel needs two values (N·H·W), else it refuses; N,C input pools "
    "over N alone, and a batch of one image works while its maps are larger than 1×1.",
)
class BatchNorm(RunningNorm):
    """Normalizes each channel by the batch's mean and variance; running averages in evaluation."""

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
        if not self.training:
            return self.normalize_by_running(x)
        self.check_batch(x)
        self.num_batches_tracked.add_(1)
        return torch.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var,
            True, self.momentum, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip
