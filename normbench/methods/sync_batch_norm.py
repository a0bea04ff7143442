r"""Synchronized Batch Normalization: batch norm over the batches of all processes.

    y = gamma·(x − μ)/√(σ² + eps) + beta

μ and σ² (biased) over N,H,W of the batches of all processes of torch.distributed's default group,
each process weighing as many values as it has; in evaluation the running averages, which move
alike everywhere, the variance's unbiased over all values. Without an initialized group, or with a
single process in it, it is batch norm. Gradients of gamma and beta are each process's own, as in
`nn.SyncBatchNorm` (which needs CUDA): DistributedDataParallel combines them. Every process has to
come by in forward and in backward.

Peng et al., "MegDet: A Large Mini-Batch Object Detector", CVPR 2018, arXiv:1711.07240.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import as_float
from normbench.kernels.running import RunningNorm
from normbench.kernels.synchronized import process_count, sync_batch_norm
from normbench.registry import Citation, Param, register


@register(
    "sync_batch_norm",
    title="Synchronized Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mu_{PNHW}}{\sqrt{\sigma^2_{PNHW}+\epsilon}}+\beta"
    r",\quad P\ \text{processes}",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "MegDet: A Large Mini-Batch Object Detector",
        (
            "Peng, Chao", "Xiao, Tete", "Li, Zeming", "Jiang, Yuning", "Zhang, Xiangyu",
            "Jia, Kai", "Yu, Gang", "Sun, Jian",
        ),
        2018,
        "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
        "1711.07240",
    ),
    policy="In one process, with or without a group, it is batch_norm. In several a process may "
    "have one value per channel, not none; batches and maps may differ in size.",
)  # fmt: skip
class SyncBatchNorm(RunningNorm):
    """Batch norm whose statistics are those of the batches of all distributed processes."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where there are no statistics."""
        if not self.training:
            return self.normalize_by_running(x)
        if process_count() > 1:
            return self._pooled(x)
        self.check_batch(x)
        self.num_batches_tracked.add_(1)
        return torch.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var,
            True, self.momentum, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip

    def _pooled(self, x: Tensor) -> Tensor:
        """Training with the other processes."""
        self.check(x)
        if x.numel() == 0:
            raise ValueError(
                f"sync_batch_norm needs values per channel on every process, got none: input of "
                f"shape {tuple(x.shape)}"
            )
        wide = [None if p is None else as_float(p) for p in (self.weight, self.bias)]
        y, mean, var, total = sync_batch_norm(x, wide[0], wide[1], self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            unbiased = var * (total / (total - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return y
