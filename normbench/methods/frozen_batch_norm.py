r"""Frozen Batch Normalization: batch norm as a constant scale and shift.

    y = gamma·(x − μ_run)/√(σ²_run + eps) + beta,  in training too, all four constant

The running averages are those of the slot it replaces and never move. gamma and beta are constants
as well: buffers called `weight` and `bias`, as in torchvision's FrozenBatchNorm2d and timm's
FrozenBatchNormAct2d, since "the BN layers become linear activations with constant offsets and
scales" in He et al. With `learn_affine` they are parameters and are learned, while the averages
still stand. eps is the slot's, 1e-5 without one, as in both.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition" (appendix A, where batch norm
is fixed for fine-tuning), CVPR 2016, arXiv:1512.03385.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "frozen_batch_norm",
    title="Frozen Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mu_{\mathrm{run}}}{\sqrt{\sigma^2_{\mathrm{run}}+\epsilon}}"
    r"+\beta,\quad \gamma,\beta,\mu_{\mathrm{run}},\sigma_{\mathrm{run}}\ \text{constant}",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "learn_affine": Param("learn gamma and beta; else they are constants too", kind=bool),
    },
    citation=Citation(
        "Deep Residual Learning for Image Recognition",
        ("He, Kaiming", "Zhang, Xiangyu", "Ren, Shaoqing", "Sun, Jian"),
        2016,
        "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
        "1512.03385",
    ),
    policy="A constant affine map of every value, so any N,C,* input works, one value per channel "
    "included. In a network never trained with batch norm it is the identity but for eps.",
)
class FrozenBatchNorm(RunningNorm):
    """Applies the slot's running averages, gamma and beta as constants, in training too."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        learn_affine: bool = False,
    ) -> None:
        super().__init__(num_features, eps, True, 0.0)
        if not learn_affine:
            del self.weight, self.bias
            self.register_buffer("weight", torch.ones(num_features))
            self.register_buffer("bias", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        return self.normalize_by_running(x)
