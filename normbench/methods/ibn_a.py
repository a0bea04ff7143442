r"""IBN-a: Instance Normalization on half of the channels, Batch Normalization on the others.

    y = gamma·(x − μ_nc)/√(σ²_nc + eps) + beta  for the first ⌊ratio·C⌋ channels
    y = gamma·(x − μ_c)/√(σ²_c + eps) + beta    for the others

Both affine, both variances biased. The running averages have C values so that a batch norm's
state can be loaded; those of the first channels are neither read nor moved. All moments come from
those of each sample's channels, so that x is not taken apart and put together again. The authors
replace only the first norm of each residual block, and none in the last stage; put in place of
every norm, as `swap` does, there is more of the instance norm than in IBN-Net.

Pan, Luo, Shi & Tang, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net",
ECCV 2018, arXiv:1807.09441.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import as_float
from normbench.kernels.grouped import check_groups
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
    "ibn_a",
    title="IBN-a (Instance and Batch Normalization)",
    family="mixture",
    equation=r"y_c = \gamma_c\,\frac{x_c-\mu}{\sqrt{\sigma^2+\epsilon}}+\beta_c,\quad"
    r" (\mu,\sigma^2) = (\mu_{nc},\sigma^2_{nc})\text{ for } c<\lfloor rC\rfloor,"
    r"\ (\mu_{c},\sigma^2_{c})\text{ else}",
    params={
        "ratio": Param("share of the channels with instance norm", minimum=0, maximum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net",
        ("Pan, Xingang", "Luo, Ping", "Shi, Jianping", "Tang, Xiaoou"),
        2018,
        "European Conference on Computer Vision (ECCV)",
        "1807.09441",
    ),
    policy="1×1 maps and N,C input have no instance statistics: refused. An odd number of channels "
    "gives the batch norm one more; of a single channel it has all.",
)
class IBNa(RunningNorm):
    """Instance norm on the first half of the channels, batch norm on the others."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        ratio: float = 0.5,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.instance_channels = int(num_features * ratio)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a statistic has a single value."""
        self.check_batch(x) if self.training else self.check(x)
        split = self.instance_channels
        if split > 0:
            check_groups(x, self.num_features)  # maps of a single value
        rows = sample_rows(as_float(x))
        means, variances = (m.view(x.shape[:2]) for m in moments(rows))
        running_mean, running_var = self.running_mean[split:], self.running_var[split:]
        if self.training:
            mean, var = pooled(means[:, split:], variances[:, split:], 0)
            self.num_batches_tracked.add_(1)
            move(running_mean, mean[0], self.momentum)
            move(running_var, unbiased(var[0], x.numel() // x.shape[1]), self.momentum)
        else:
            mean, var = as_float(running_mean)[None], as_float(running_var)[None]
        samples = x.shape[0]
        means = torch.cat([means[:, :split], mean.expand(samples, -1)], 1)
        variances = torch.cat([variances[:, :split], var.expand(samples, -1)], 1)
        y = standardize(rows, means, variances, self.weight, self.bias, self.eps)
        return from_rows(y, x)

    def extra_repr(self) -> str:
        """Also the number of channels with instance norm."""
        return f"{super().extra_repr()}, instance_channels={self.instance_channels}"
