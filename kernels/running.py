"""Layers that keep running averages under the names that `nn.BatchNorm2d` gives them."""

from __future__ import annotations

import torch
from torch import Tensor

from normbench.kernels.channels import ChannelNorm


class RunningNorm(ChannelNorm):
    """A `ChannelNorm` with running_mean, running_var (unbiased) and num_batches_tracked."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, eps: float | None, affine: bool | None, momentum: float
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def normalize_by_running(self, x: Tensor) -> Tensor:
        """gamma·(x − running_mean)/√(running_var + eps) + beta; no gradient into the averages."""
        self.check(x)
        return torch.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var,
            False, 0.0, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """What `print(layer)` shows between the brackets."""
        return f"{super().extra_repr()}, momentum={self.momentum:g}"
