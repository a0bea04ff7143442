r"""Mean-only Batch Normalization: batch norm that centres and does not scale.

    y = x − μ + beta

μ over N,H,W of the batch in training, in evaluation its running average (weight of the new batch
0.1, as in the authors' code). There is no gamma: the scale is the weights', which the paper
normalizes at the same time (Weight Normalization); this is the layer alone. Its backward centres
the gradient: dL/dx = dL/dy less the mean of dL/dy.

Salimans & Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of
Deep Neural Networks", NeurIPS 2016, arXiv:1602.07868, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.moments import move
from normbench.registry import Citation, Param, register


@register(
    "mean_only_batch_norm",
    title="Mean-only Batch Normalization",
    family="batch",
    equation=r"y = x-\mu_{NHW}+\beta",
    params={
        "affine": Param("learn beta", kind=bool),
        "momentum": Param("weight of the new batch in the running average", minimum=0, maximum=1),
    },
    citation=Citation(
        "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural "
        "Networks",
        ("Salimans, Tim", "Kingma, Diederik P."),
        2016,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1602.07868",
    ),
    policy="A mean needs no second value: with one value per channel in training (a batch of one "
    "with 1×1 maps) y = beta.",
)
class MeanOnlyBatchNorm(ChannelNorm):
    """Subtracts the batch's mean of each channel; its running average in evaluation."""

    running_mean: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, None, affine)
        self.weight = None
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        wide = as_float(x)
        if self.training:
            mean = wide.mean((0, *range(2, x.dim())))
            self.num_batches_tracked.add_(1)
            move(self.running_mean, mean, self.momentum)
        else:
            mean = as_float(self.running_mean)
        shift = -mean if self.bias is None else as_float(self.bias) - mean
        return (wide + shift.view(1, -1, *[1] * (x.dim() - 2))).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(layer)` shows between the brackets."""
        return f"{self.num_features}, affine={self.bias is not None}, momentum={self.momentum:g}"
