r"""Instance-Aware Batch Normalization (IABN), the layer of NOTE.

    y = gamma·(x − μ̃)/√(σ̃² + eps) + beta
    μ̃ = μ + ψ(μ_nc − μ; k·√((σ² + eps)/L)),  σ̃² = σ² + ψ(σ²_nc − σ²; k·(σ² + eps)·√(2/(L − 1)))

ψ(d; λ) = sign(d)·max(|d| − λ, 0) is soft shrinkage, L the values of a map (H·W), μ_nc and σ²_nc the
sample's own statistics. The thresholds are k standard errors of a mean and a variance of L
independent normal values with the statistics μ and σ²: what a sample may deviate by chance is
ignored. In evaluation μ and σ² are the running averages; in training the batch's, corrected too, as
in the authors' code (`correct_training=False` trains as batch norm and corrects in evaluation
alone). All variances are unbiased, those that normalize in training too, except in maps of a single
value, where this is batch norm and the authors' code stays unbiased; running averages as in batch
norm. k is 4 in the paper (its code's default is 3). The test-time part of NOTE beside it, a memory
of samples and averages that go on in evaluation, is no part of the layer.

Gong, Jeong, Kim, Kim, Shin & Lee, "NOTE: Robust Continual Test-time Adaptation Against Temporal
Correlation", NeurIPS 2022, arXiv:2208.05117.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normbench.kernels.batch_moments import normalize, over_space
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


def soft_shrink(d: Tensor, threshold: Tensor) -> Tensor:
    """Sign(d)·max(|d| − threshold, 0)."""
    return d - torch.clamp(d, -threshold, threshold)


@register(
    "instance_aware_batch_norm",
    title="Instance-Aware Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\tilde\mu}{\sqrt{\tilde\sigma^2+\epsilon}}+\beta,\quad"
    r"\tilde\mu = \mu+\psi\big(\mu_{nc}-\mu;\,k\,s_\mu\big),\ "
    r"\tilde\sigma^2 = \sigma^2+\psi\big(\sigma^2_{nc}-\sigma^2;\,k\,s_{\sigma^2}\big)",
    params={
        "k": Param("standard errors that a sample may deviate uncorrected", minimum=0),
        "correct_training": Param("correct in training too, not in evaluation alone", kind=bool),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation",
        (
            "Gong, Taesik",
            "Jeong, Jongheon",
            "Kim, Taewon",
            "Kim, Yewon",
            "Shin, Jinwoo",
            "Lee, Sung-Ju",
        ),
        2022,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "2208.05117",
    ),
    policy="With 1×1 maps or N,C input a sample has no variance and the layer is batch norm, with "
    "its biased variance in training and its need of two values per channel.",
)
class InstanceAwareBatchNorm(RunningNorm):
    """Batch norm whose statistics give way to a sample's own where it deviates significantly."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        k: float = 4.0,
        correct_training: bool = True,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.k, self.correct_training = k, correct_training

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        if self.training:
            self.check_batch(x)
            self.num_batches_tracked.add_(1)
        else:
            self.check(x)
        values = x.shape[2:].numel()
        if values < 2 or (self.training and not self.correct_training):
            return torch.batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_var,
                self.training, self.momentum, self.eps, torch.backends.cudnn.enabled,
            )  # fmt: skip
        own_mean, biased = over_space(x)
        own_var = biased * (values / (values - 1))
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self._of_batch(own_mean, biased, values)
        error = torch.sqrt((var + self.eps) / values)
        mean = mean + soft_shrink(own_mean - mean, self.k * error)
        error = (var + self.eps) * math.sqrt(2 / (values - 1))
        var = var + soft_shrink(own_var - var, self.k * error)
        return normalize(x, mean, var, self.weight, self.bias, self.eps)

    def _of_batch(self, means: Tensor, variances: Tensor, values: int) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the batch from its samples'; the averages move on."""
        count = values * means.shape[0]
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0) * (count / (count - 1))
        with torch.no_grad():
            for running, now in ((self.running_mean, mean), (self.running_var, var)):
                running.lerp_(now.to(running.dtype), self.momentum)
        return mean, var

    def extra_repr(self) -> str:
        """Also the threshold and whether training is corrected."""
        return f"{super().extra_repr()}, k={self.k:g}, correct_training={self.correct_training}"
