r"""Representative Batch Normalization: batch norm with feature calibration before and after.

    x_m = x + w_m·GAP(x),  x_s = (x_m − μ)/√(σ² + eps)
    y = gamma·sigmoid(w_v·GAP(x_s) + w_b)·x_s + beta

GAP is the mean of a sample's channel over H,W; μ and σ² (biased) are batch norm's, of x_m, and so
are the running averages (variance unbiased). w_m, w_v and w_b are `center_weight`, `scale_weight`
and `scale_bias`, 0, 0 and 1 at first as in the authors' code: it starts as a batch norm whose
output is multiplied by sigmoid(1) = 0.731. Moments of x_m and GAP(x_s) follow from mean and
variance of each sample's channel, so that x is read twice only. The authors' code overwrites its
input with x_m; here it is left alone.

Gao, Han, Li, Cheng & Peng, "Representative Batch Normalization with Feature Calibration",
CVPR 2021.
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
    scale_shift,
    unbiased,
)
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "representative_batch_norm",
    title="Representative Batch Normalization",
    family="mixture",
    equation=r"y = \gamma\,\mathrm{sigmoid}(w_v\,\overline{x_s}+w_b)\,x_s+\beta,\quad"
    r" x_s=\frac{x_m-\mu}{\sqrt{\sigma^2+\epsilon}},\ x_m = x+w_m\,\overline{x},\ "
    r"\overline{x}\text{ over }H,W",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Representative Batch Normalization with Feature Calibration",
        ("Gao, Shang-Hua", "Han, Qi", "Li, Duo", "Cheng, Ming-Ming", "Peng, Pai"),
        2021,
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses. With 1×1 maps or "
    "N,C input every value is its own mean over H,W.",
)
class RepresentativeBatchNorm(RunningNorm):
    """Batch norm calibrated by each sample's own channel means, before and after."""

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
        self.center_weight = nn.Parameter(torch.zeros(num_features))
        self.scale_weight = nn.Parameter(torch.zeros(num_features))
        self.scale_bias = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check_batch(x) if self.training else self.check(x)
        rows = sample_rows(as_float(x))
        mean, var = (m.view(x.shape[:2]) for m in moments(rows))
        offset = as_float(self.center_weight) * mean  # x_m = x + offset, its GAP is gap
        gap = mean + offset
        if self.training:
            center, spread = (m[0] for m in pooled(gap, var, 0))
            values = x.numel() // x.shape[1]
            self.num_batches_tracked.add_(1)
            move(self.running_mean, center, self.momentum)
            move(self.running_var, unbiased(spread, values), self.momentum)
        else:
            center, spread = as_float(self.running_mean), as_float(self.running_var)
        inverse_std = torch.rsqrt(spread + self.eps)
        normalized_gap = (gap - center) * inverse_std
        gate = torch.sigmoid(
            as_float(self.scale_weight) * normalized_gap + as_float(self.scale_bias)
        )
        scale = as_float(self.weight) * gate * inverse_std
        shift = as_float(self.bias) + scale * (offset - center)
        return from_rows(scale_shift(rows, scale.flatten(), shift.flatten()), x)
