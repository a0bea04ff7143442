r"""In-Place Activated Batch Normalization: batch norm and leaky ReLU that invert their output.

    y = leaky_relu((|gamma| + eps)·(x − μ)/√(σ² + eps) + beta, slope)

μ, σ² and the running averages are batch norm's. |gamma| + eps, with the same eps, keeps the scale
above 0, so that x̂ can be computed back from y; the derivative of |gamma| is 1 at 0, as in the
authors' code, so that a zero-initialised gamma can grow. In training with an activation the
backward works from y, and x is not kept: the memory of one feature map is saved. The authors also
overwrite x in the forward; here x is left alone, which costs nothing once nobody else holds it. The
price is precision: x̂ comes back with the rounding of y over |gamma| + eps.

Rota Bulò, Porzi & Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized Training of
DNNs", CVPR 2018, arXiv:1712.02616.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench.kernels.activated import activated_batch_norm
from normbench.kernels.channels import as_float
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "inplace_abn",
    title="In-Place Activated Batch Normalization",
    family="batch",
    equation=r"y = \mathrm{leaky}_s\Big((|\gamma|+\epsilon)\,"
    r"\frac{x-\mu_{NHW}}{\sqrt{\sigma^2_{NHW}+\epsilon}}+\beta\Big)",
    params={
        "slope": Param("slope of leaky ReLU below 0", minimum=0, maximum=1, exclusive_minimum=True),
        "eps": Param("added to the variance and to |gamma|", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs",
        ("Rota Bulò, Samuel", "Porzi, Lorenzo", "Kontschieder, Peter"),
        2018,
        "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
        "1712.02616",
    ),
    consumes_activation=True,
    policy="The activation of the slot, whatever it is, gives way to leaky ReLU. Without one there "
    "is none, and nothing is inverted: batch_norm with the scale |gamma| + eps. A negative gamma "
    "that is taken over from batch norm counts as positive. Two values per channel in training.",
)
class InPlaceABN(RunningNorm):
    """Batch norm and leaky ReLU whose backward needs the output alone."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        slope: float = 0.01,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.slope = slope
        self.act = act  # never called: a later swap to another method gives it back

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check(x)
        if self.training:
            self.check_batch(x)
            self.num_batches_tracked.add_(1)
            if self.act is not None:
                return self._inverting(x)
        y = torch.batch_norm(
            x, self._scale(), self.bias, self.running_mean, self.running_var,
            self.training, self.momentum, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip
        return y if self.act is None else F.leaky_relu(y, self.slope)

    def _inverting(self, x: Tensor) -> Tensor:
        """Training with an activation."""
        scale, bias = self._scale(), self.bias
        scale = torch.ones_like(self.running_mean) if scale is None else scale
        shift = torch.zeros_like(self.running_mean) if bias is None else bias
        y, mean, var = activated_batch_norm(
            x, as_float(scale), as_float(shift), self.slope, self.eps
        )
        with torch.no_grad():
            values = x.numel() // x.shape[1]
            unbiased = var * (values / (values - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return y

    def _scale(self) -> Tensor | None:
        """|gamma| + eps, differentiated as gamma + eps at 0; None where it is not affine."""
        if self.weight is None:
            return None
        return torch.where(self.weight < 0, -self.weight, self.weight) + self.eps

    def extra_repr(self) -> str:
        """Also the slope, where an activation was taken over."""
        slope = "" if self.act is None else f", slope={self.slope:g}"
        return f"{super().extra_repr()}{slope}"
