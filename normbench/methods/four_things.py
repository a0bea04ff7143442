r"""Four Things Batch Normalization: what a sample knows of itself, and ghost batches.

    training:   y = gamma·(x − μ_g)/√(σ²_g + eps) + beta
    evaluation: E[x] = (1 − α)·E_run[x] + α·E_HW[x],  E[x²] = (1 − α)·E_run[x²] + α·E_HW[x²],
                y = gamma·(x − E[x])/√(E[x²] − E[x]² + eps) + beta

μ_g and σ²_g (biased) are those of a ghost batch: consecutive samples, at most `ghost_size` of them,
the batch being cut into parts of nearly equal size. The running moments are those of the whole
batch, momentum 0.01 as in the authors' code. They are kept as `running_mean` and `running_var`
= E_run[x²] − E_run[x]² (biased, with the spread of the batch means in it), which says the same and
cancels nothing: (1−α)·v_run + α·v_HW + α(1−α)(μ_HW − μ_run)² is the variance of evaluation.

α is tuned on validation data in the paper and 0 in its code. Here the default is 1/ghost_size, the
share that a sample had in the statistics of its ghost batch: among all α it estimates the moments
of a ghost batch with that sample in it with the least squared error. The default 16 is the ghost
batch of the authors' example. gamma and beta are decayed, as the optimizer decays weights, to 0;
the authors' code has a decay of gamma to 1, which as released is never switched on. The fourth
thing, groups of channels at very small batches, is another layer and not part of this one.

Summers & Dinneen, "Four Things Everyone Should Know to Improve Batch Normalization", ICLR 2020,
arXiv:1906.03548.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.batch_moments import normalize, over_space
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "four_things",
    title="Four Things Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mathbb E[x]}{\sqrt{\mathbb E[x^2]-\mathbb E[x]^2+\epsilon}}"
    r"+\beta,\quad \text{evaluation: } \mathbb E[x^k] = (1-\alpha)\,\mathbb E_{\mathrm{run}}[x^k]"
    r"+\alpha\,\mathbb E_{HW}[x^k]",
    params={
        "ghost_size": Param("samples in a ghost batch, at most", int, minimum=1),
        "alpha": Param("weight of the sample in evaluation; 1/ghost_size", minimum=0, maximum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running moments", minimum=0, maximum=1),
    },
    citation=Citation(
        "Four Things Everyone Should Know to Improve Batch Normalization",
        ("Summers, Cecilia", "Dinneen, Michael J."),
        2020,
        "International Conference on Learning Representations (ICLR)",
        "1906.03548",
    ),
    policy="A ghost batch needs two values per channel, else training refuses: ghosts of one "
    "sample want maps larger than 1×1. In evaluation a sample of one value per channel brings its "
    "mean and the variance 0. A batch smaller than a ghost is one ghost.",
)
class FourThings(RunningNorm):
    """Ghost batches in training; in evaluation the sample joins in its own statistics."""

    decayed_parameters = ("weight", "bias")

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        ghost_size: int = 16,
        alpha: float | None = None,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.ghost_size = ghost_size
        self.alpha = 1 / ghost_size if alpha is None else alpha

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError if a ghost has one value per channel."""
        if not self.training:
            return self._weighed(x)
        self.check_batch(x)
        count = -(-x.shape[0] // self.ghost_size)
        size, more = divmod(x.shape[0], count)
        # Not tensor_split, whose backward adds up a gradient of the whole batch for every part.
        ghosts = torch.split(x, [size + 1] * more + [size] * (count - more)) if count > 1 else (x,)
        self.check_batch(ghosts[-1])  # the smallest
        found = [self._ghost(ghost) for ghost in ghosts]
        shares = [ghost.shape[0] / x.shape[0] for ghost in ghosts]
        self._update(shares, [mean for _, mean, _ in found], [var for *_, var in found])
        return torch.cat([y for y, *_ in found]) if count > 1 else found[0][0]

    def _ghost(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ghost normalized by its statistics, its mean and its biased variance."""
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = torch.batch_norm(
            x, self.weight, self.bias, mean, var,
            True, 1.0, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip
        values = x.shape[0] * x.shape[2:].numel()
        return y, mean, var * ((values - 1) / values)

    @torch.no_grad()
    def _update(self, shares: list[float], means: list[Tensor], variances: list[Tensor]) -> None:
        mean = torch.stack([s * m for s, m in zip(shares, means, strict=True)]).sum(0)
        parts = zip(shares, means, variances, strict=True)
        var = torch.stack([s * (v + (m - mean).square()) for s, m, v in parts]).sum(0)
        between = (mean - self.running_mean).square() * (self.momentum * (1 - self.momentum))
        self.num_batches_tracked.add_(1)
        self.running_var.lerp_(var, self.momentum).add_(between)
        self.running_mean.lerp_(mean, self.momentum)

    def _weighed(self, x: Tensor) -> Tensor:
        if self.alpha == 0:
            return self.normalize_by_running(x)
        self.check(x)
        mean, var = over_space(x)
        between = (mean - self.running_mean).square() * (self.alpha * (1 - self.alpha))
        mean = (1 - self.alpha) * self.running_mean + self.alpha * mean
        var = (1 - self.alpha) * self.running_var + self.alpha * var + between
        return normalize(x, mean, var, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Also the ghosts and the sample's weight."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}, alpha={self.alpha:g}"
