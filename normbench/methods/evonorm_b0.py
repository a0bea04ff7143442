r"""EvoNorm-B0: a batch-based layer of norm and nonlinearity found by evolution.

    y = gamma·x/max(√(σ² + eps), v·x + √(σ²_nc + eps)) + beta

σ² (biased) per channel over N,H,W of the batch in training, its running average in evaluation;
σ²_nc (biased) per sample and channel over H,W, always the input's own. x is not centred. v, one
per channel and 1 at first, is learned. The layer is its own nonlinearity and replaces the
activation at the slot. Where none follows it only scales and shifts, y = gamma·x + beta, as in the
authors' code and in timm.

The running variance is the unbiased one, as in `nn.BatchNorm2d` and in timm; the authors' code
averages the biased. eps is the slot's; the authors' is 1e-5, timm's 1e-3.

Liu, Brock, Simonyan & Le, "Evolving Normalization-Activation Layers", NeurIPS 2020,
arXiv:2004.02967.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.sample_wise import per_channel, pooled_variance, space_moments
from normbench.registry import Citation, Param, register


@register(
    "evonorm_b0",
    title="EvoNorm-B0",
    family="batch",
    equation=r"y = \gamma\,\frac{x}{\max\big(\sqrt{\sigma^2_{NHW}+\epsilon},\ "
    r"v x+\sqrt{\sigma^2_{HW}+\epsilon}\big)}+\beta",
    params={
        "eps": Param(
            "added to both variances, inside the roots", minimum=0, exclusive_minimum=True
        ),
        "momentum": Param("weight of the new batch in the running variance", minimum=0, maximum=1),
    },
    citation=Citation(
        "Evolving Normalization-Activation Layers",
        ("Liu, Hanxiao", "Brock, Andy", "Simonyan, Karen", "Le, Quoc V."),
        2020,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "2004.02967",
    ),
    consumes_activation=True,
    policy="Replaces the activation at the slot, whichever it is; without one it does not "
    "normalize, y = gamma·x + beta. In training a channel needs two values (N·H·W), else it "
    "refuses; of a 1×1 map the instance deviation is √eps.",
)
class EvoNormB0(ChannelNorm):
    """Divides by the batch's deviation or, where larger, by the instance's and the value itself."""

    weight: nn.Parameter
    bias: nn.Parameter
    v: nn.Parameter | None
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, True)
        self.momentum = momentum
        self.act = act  # never called: kept for whoever puts another method into this slot
        v = None if act is None else nn.Parameter(torch.ones(num_features))
        self.register_parameter("v", v)
        if act is not None:
            self.register_buffer("running_var", torch.ones(num_features))
            self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check(x)
        wide = as_float(x)
        gamma, beta = per_channel(self.weight, x), per_channel(self.bias, x)
        if self.v is None:
            return torch.addcmul(beta, wide, gamma).to(x.dtype)
        mean, var = space_moments(wide)
        batch = self._batch_deviation(x, mean, var)
        instance = torch.sqrt(var + self.eps)
        # max(a, b) = ReLU(b − a) + a, whose backward costs a third of the maximum's.
        excess = torch.addcmul(instance - batch, wide, per_channel(self.v, x)).relu()
        return torch.addcmul(beta, wide / (excess + batch), gamma).to(x.dtype)

    def _batch_deviation(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if not self.training:
            return torch.sqrt(per_channel(self.running_var, x) + self.eps)
        self.check_batch(x)
        pooled = pooled_variance(mean, var, 0)
        values = x.numel() // x.shape[1]
        with torch.no_grad():
            now = pooled.flatten().to(self.running_var.dtype) * (values / (values - 1))
            self.running_var.lerp_(now, self.momentum)
            self.num_batches_tracked.add_(1)
        return torch.sqrt(pooled + self.eps)

    def extra_repr(self) -> str:
        """Also the momentum, and whether it is only affine."""
        return f"{super().extra_repr()}, momentum={self.momentum:g}, apply_act={self.v is not None}"
