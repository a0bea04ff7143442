r"""Ghost Batch Normalization: batch norm on virtual batches, chunks of the real one.

    y_i = gamma·(x_i − μ_g)/√(σ²_g + eps) + beta,  sample i in chunk g of `ghost_size` samples

μ_g and σ²_g (biased) over N,H,W of the chunk. Chunks are runs of consecutive samples, as in the
authors' code, and the last one is as small as what is left, unless a channel would have a single
value there: then it joins the one before. Evaluation is batch norm's, by running averages that
move once a chunk, in order, by its mean and its unbiased variance. Algorithm 1 of the paper
averages √(σ²_g + eps) in place of the variance; the authors' code, which passes the chunks through
`nn.BatchNorm2d` one after the other, does what is built here. A batch that is not larger than
`ghost_size` makes it batch norm.

Hoffer, Hubara & Soudry, "Train longer, generalize better: closing the generalization gap in large
batch training of neural networks", NeurIPS 2017, arXiv:1705.08741.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import keep_format
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


@register(
    "ghost_batch_norm",
    title="Ghost Batch Normalization",
    family="batch",
    equation=r"y_i = \gamma\,\frac{x_i-\mu_{g}}{\sqrt{\sigma^2_{g}+\epsilon}}+\beta,"
    r"\quad i \in \text{chunk } g",
    params={
        "ghost_size": Param("samples in a chunk", int, minimum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of each chunk in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Train longer, generalize better: closing the generalization gap in large batch training "
        "of neural networks",
        ("Hoffer, Elad", "Hubara, Itay", "Soudry, Daniel"),
        2017,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1705.08741",
    ),
    policy="The last chunk takes what is left and joins the one before where a channel would have "
    "one value; a chunk with one value per channel anywhere else (ghost_size=1 with 1×1 maps or "
    "N,C input) is refused. A batch up to ghost_size is batch_norm.",
)
class GhostBatchNorm(RunningNorm):
    """Normalizes each chunk of the batch by its own mean and variance."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        ghost_size: int = 128,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in a chunk."""
        if not self.training:
            return self.normalize_by_running(x)
        self.check_batch(x)
        chunks = torch.split(x, self._sizes(x))
        self.check_batch(chunks[0])
        self.num_batches_tracked.add_(1)
        normalized = [
            torch.batch_norm(
                chunk, self.weight, self.bias, self.running_mean, self.running_var,
                True, self.momentum, self.eps, torch.backends.cudnn.enabled,
            )
            for chunk in chunks
        ]  # fmt: skip
        return normalized[0] if len(normalized) == 1 else keep_format(torch.cat(normalized), x)

    def _sizes(self, x: Tensor) -> list[int]:
        """Samples in each chunk."""
        full, left = divmod(x.shape[0], self.ghost_size)
        sizes = [self.ghost_size] * full
        if left * x.shape[2:].numel() == 1 and full:
            sizes[-1] += left
        elif left:
            sizes.append(left)
        return sizes

    def extra_repr(self) -> str:
        """Also the size of the chunks."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"
