r"""Normalization by moving averages: the negative control of Batch Normalization.

    y = gamma·(x − μ_run)/√(σ²_run + eps) + beta,  in training too

The running averages are those from before this batch, and no gradient flows through the batch's
statistics. It is what Batch Renorm would be if it forgot them: the same forward as Batch Renorm
without limits, but nothing in the backward keeps the scale of the weights in check, so they grow
without bound. Ioffe & Szegedy (section 3) and Ioffe (2017, section 3) warn of it.

Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
NeurIPS 2017, arXiv:1702.03275.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.kept import kept
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "moving_average_norm",
    title="Moving-Average Normalization (negative control)",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mu_{\mathrm{run}}}{\sqrt{\sigma^2_{\mathrm{run}}+\epsilon}}"
    r"+\beta,\quad \frac{\partial\mu_{\mathrm{run}}}{\partial x}"
    r"=\frac{\partial\sigma_{\mathrm{run}}}{\partial x}=0",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
        ("Ioffe, Sergey",),
        2017,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1702.03275",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses.",
)
class MovingAverageNorm(RunningNorm):
    """Normalizes by running averages even in training, without gradient through the statistics."""

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
        # The backward reads the averages again: hand it copies, as the originals move on below.
        mean, var = kept(self.running_mean.clone()), kept(self.running_var.clone())
        y = torch.batch_norm(x, self.weight, self.bias, mean, var, False, 0.0, self.eps, False)
        with torch.no_grad():  # the native op for its update of the averages alone
            self.num_batches_tracked.add_(1)
            torch.batch_norm(
                x, None, None, self.running_mean, self.running_var,
                True, self.momentum, self.eps, False,
            )  # fmt: skip
        return y
