r"""Adaptive Batch Normalization (AdaBN, prediction-time BN): evaluation by the batch at hand.

    y = gamma·(x − μ)/√(σ² + eps) + beta
    evaluation: μ = (S·μ_run + n·μ_batch)/(S + n),  σ² = (S·σ²_run + n·σ²_batch)/(S + n)

Training is batch norm. In evaluation μ_batch and σ²_batch (biased) are those of the evaluation
batch of n samples; S is `source_weight`, the number of samples that the running averages count
for (Schneider et al. 2020, equation 1: variances are mixed as they are, without the distance of
the means; their code's batch variance is the unbiased one). S = 0, the default, is the target batch
alone (Nado et al. 2020), the layer in training mode without an update; a large S is batch norm. Li
et al. take the statistics of the whole target domain before they predict: that is `batch_norm` and
`normbench.recalibration` on target data. Nothing is updated in evaluation.

Li, Wang, Shi, Liu & Hou, "Revisiting Batch Normalization For Practical Domain Adaptation", 2016,
arXiv:1603.04779. Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under
Covariate Shift", 2020, arXiv:2006.10963. Schneider et al., "Improving robustness against common
corruptions by covariate shift adaptation", NeurIPS 2020, arXiv:2006.16971.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.batch_moments import normalize, over_batch
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "adaptive_batch_norm",
    title="Adaptive Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}}+\beta,\quad \text{evaluation: }"
    r"\mu = \frac{S\,\mu_{\mathrm{run}}+n\,\mu_{NHW}}{S+n},\ "
    r"\sigma^2 = \frac{S\,\sigma^2_{\mathrm{run}}+n\,\sigma^2_{NHW}}{S+n}",
    params={
        "source_weight": Param(
            "samples S that the running averages count for in evaluation; 0 leaves them out",
            minimum=0,
        ),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Revisiting Batch Normalization For Practical Domain Adaptation",
        ("Li, Yanghao", "Wang, Naiyan", "Shi, Jianping", "Liu, Jiaying", "Hou, Xiaodi"),
        2016,
        "arXiv preprint",
        "1603.04779",
    ),
    policy="Evaluation depends on the other samples of its batch and on its size. Two values per "
    "channel (N·H·W) are needed in training, and in evaluation too while `source_weight` is 0; "
    "else a single value has the variance 0.",
)
class AdaptiveBatchNorm(RunningNorm):
    """Batch norm that normalizes in evaluation by the statistics of the evaluation batch."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        source_weight: float = 0.0,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.source_weight = source_weight

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel, see the policy."""
        if not self.training and self.source_weight > 0:
            return self._mixed(x)
        self.check_batch(x)
        mean, var = (self.running_mean, self.running_var) if self.training else (None, None)
        if self.training:
            self.num_batches_tracked.add_(1)
        return torch.batch_norm(
            x, self.weight, self.bias, mean, var,
            True, self.momentum, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip

    def _mixed(self, x: Tensor) -> Tensor:
        self.check(x)
        share = self.source_weight / (self.source_weight + x.shape[0])
        running = (self.running_mean, self.running_var)
        mean, var = (
            share * source + (1 - share) * batch
            for source, batch in zip(running, over_batch(x), strict=True)
        )
        return normalize(x, mean, var, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Also the weight of the running averages."""
        return f"{super().extra_repr()}, source_weight={self.source_weight:g}"
