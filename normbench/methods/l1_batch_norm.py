r"""L1 Batch Normalization: batch norm by the mean absolute deviation.

    y = gamma·(x − μ)/(σ + eps) + beta,  σ = √(π/2)·E|x − μ|

μ and the mean absolute deviation over N,H,W of the batch in training, running averages of μ and σ
in evaluation. √(π/2), which makes σ the standard deviation of Gaussian values, is Hoffer et al.'s;
Wu et al. leave it out, since gamma can learn it. eps is added to σ, there being no root, as in
Hoffer et al.'s code, so that a slot's eps weighs less here than in batch norm. `running_std` holds
σ without eps; there is no unbiased variant. Loading BatchNorm weights sets it to √running_var.
Hoffer et al.'s code averages 1/(σ + eps) instead, starts both averages at 0, and its momentum of
0.1 is the weight of the old average.

Wu et al., "L1-Norm Batch Normalization for Efficient Training of Deep Neural Networks",
arXiv:1802.09769; Hoffer, Banner, Golan & Soudry, "Norm matters: efficient and accurate
normalization schemes in deep networks", NeurIPS 2018, arXiv:1803.01814.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.registry import Citation, Param, register

GAUSSIAN = math.sqrt(math.pi / 2)
"""Standard deviation over mean absolute deviation of a Gaussian."""


@register(
    "l1_batch_norm",
    title="L1 Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mu_{NHW}}{\sigma+\epsilon}+\beta,\quad"
    r" \sigma = \sqrt{\pi/2}\;\mathbb{E}_{NHW}\,|x-\mu_{NHW}|",
    params={
        "eps": Param("added to σ; there is no root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Norm matters: efficient and accurate normalization schemes in deep networks",
        ("Hoffer, Elad", "Banner, Ron", "Golan, Itay", "Soudry, Daniel"),
        2018,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1803.01814",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses.",
)
class L1BatchNorm(ChannelNorm):
    """Normalizes each channel by the batch's mean and mean absolute deviation."""

    running_mean: Tensor
    running_std: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_std", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        if not self.training:
            self.check(x)
            var = (as_float(self.running_std) + self.eps).square().to(self.running_mean.dtype)
            return torch.batch_norm(
                x, self.weight, self.bias, self.running_mean, var, False, 0.0, 0.0, False
            )
        self.check_batch(x)
        dims, wide = (0, *range(2, x.dim())), as_float(x)
        mean = wide.mean(dims, keepdim=True)
        centred = wide - mean
        std = GAUSSIAN * centred.abs().mean(dims, keepdim=True)
        self._move(mean, std)
        if self.weight is None or self.bias is None:
            return (centred / (std + self.eps)).to(x.dtype)
        weight, bias = (as_float(p).view_as(mean) for p in (self.weight, self.bias))
        return torch.addcmul(bias, centred, weight / (std + self.eps)).to(x.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, std: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        for average, now in ((self.running_mean, mean), (self.running_std, std)):
            average.lerp_(now.flatten().to(average.dtype), self.momentum)

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any
    ) -> None:
        """Takes BatchNorm's state too."""
        var = state_dict.pop(f"{prefix}running_var", None)
        if var is not None and f"{prefix}running_std" not in state_dict:
            state_dict[f"{prefix}running_std"] = torch.sqrt(var)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Also the momentum."""
        return f"{super().extra_repr()}, momentum={self.momentum:g}"
