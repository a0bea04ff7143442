r"""Moving Average Batch Normalization.

    y = gamma·r·z + beta,  z = x/√(χ_SMA + eps),  r = clip(√(χ_SMA + eps)/√(χ_EMA + eps), 1/5, 5)
    dx = (g − z·Ψ_SMA)/√(χ_SMA + eps),  χ = E[x²],  Ψ = E[g·z],  g = gamma·r·dy

Nothing is centred but the weights of the convolutions, W − μ_w per filter. χ_SMA and Ψ_SMA are
means over the last `buffer_size` batches, this one included; χ_EMA, from before this batch,
averages χ_SMA with weight 0.02, and evaluation uses it. r carries no gradient, and χ_SMA one only
through Ψ_SMA: the backward is not the derivative of the forward.

As in the authors' MABN.py, which they call the formal one and which detection uses, the first
batches, as many as the buffer holds but at least 99, use their own χ and Ψ, which is batch norm
without a mean, and r = 1 through step 1000 (`hold`). Their ImageNet code differs: own statistics at
the first step alone, which χ_EMA starts from, and r = 1 through step 99; its means are over 16
pairs of images, on average half of them of the present batch of 32. The buffer of 16 is theirs for
a batch of 2: it pools 32 images, and that product is their argument.

Yan, Wan, Zhang, Zhang, Wei & Sun, "Towards Stabilizing Batch Statistics in Backward Propagation of
Batch Normalization", ICLR 2020, arXiv:2001.06838.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.kept import kept
from normbench.kernels.uncentred import mean_square, moving_average_scale, scale
from normbench.registry import Citation, Param, register


class Centred(nn.Module):
    """The parametrization: a weight less the mean of each filter."""

    def forward(self, weight: Tensor) -> Tensor:
        """W − μ_w for a weight of shape O,I,*."""
        return weight - weight.mean(tuple(range(1, weight.dim())), keepdim=True)


def centre(conv: nn.Module, **_: object) -> None:
    """Puts the parametrization on a convolution, unless its filters are single numbers."""
    weight = conv.weight
    if isinstance(weight, Tensor) and weight[0].numel() > 1:
        parametrize.register_parametrization(conv, "weight", Centred())


def observe(model: nn.Module) -> dict[str, float]:
    """Share of training forwards, averaged over layers, that used averages over batches."""
    layers = [m for m in model.modules() if isinstance(m, MovingAverageBatchNorm)]
    shares = [layer.averaged_share() for layer in layers]
    return {"mabn_averaged_share": sum(shares) / len(shares)} if shares else {}


@register(
    "mabn",
    title="Moving Average Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,r\,\frac{x}{\sqrt{\chi_{\mathrm{SMA}}+\epsilon}}+\beta,\quad"
    r" \chi=\mathbb{E}_{NHW}[x^2],\ r=\mathrm{clip}\sqrt{\frac{\chi_{\mathrm{SMA}}+\epsilon}"
    r"{\chi_{\mathrm{EMA}}+\epsilon}},\quad \hat W_o = W_o-\mu_o",
    params={
        "buffer_size": Param("batches in the moving averages", int, minimum=1),
        "rmax": Param("limit of r: 1/rmax to rmax", minimum=1),
        "warmup": Param("batches before this one use their own statistics", int, minimum=0),
        "hold": Param("r = 1 through this batch, or through `warmup`", int, minimum=0),
        "eps": Param("added to E[x²], inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new χ in the running one", minimum=0, maximum=1),
    },
    citation=Citation(
        "Towards Stabilizing Batch Statistics in Backward Propagation of Batch Normalization",
        ("Yan, Junjie", "Wan, Ruosi", "Zhang, Xiangyu", "Zhang, Wei", "Wei, Yichen", "Sun, Jian"),
        2020,
        "International Conference on Learning Representations (ICLR)",
        "2001.06838",
    ),
    weight=centre,
    observe=observe,
    policy="E[x²] exists for any input, a single value too. Convolutions whose filters are a "
    "single number, and those that standardize already, are left alone. A batch norm's running "
    "averages are not taken over.",
)
class MovingAverageBatchNorm(ChannelNorm):
    """Scales by moving averages of E[x²], in the backward too; centres weights instead of data."""

    running_square: Tensor
    recent_squares: Tensor
    recent_gradients: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        buffer_size: int = 16,
        rmax: float = 5.0,
        warmup: int = 100,
        hold: int = 1000,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.02,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.rmax, self.momentum = rmax, momentum
        self.last_alone = max(buffer_size, warmup - 1)
        self.last_held = max(hold, warmup)
        self.register_buffer("running_square", torch.ones(num_features))
        self.register_buffer("recent_squares", torch.zeros(buffer_size, num_features))
        self.register_buffer("recent_gradients", torch.zeros(buffer_size, num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        if not self.training:
            return scale(x, self.weight, self.bias, self.running_square, self.eps)
        wide = as_float(x)
        square, r, slot, alone = self._advance(wide)
        weight = torch.ones_like(r) if self.weight is None else as_float(self.weight)
        bias = torch.zeros_like(r) if self.bias is None else as_float(self.bias)
        return moving_average_scale(
            wide, (weight, bias), square, r, self.eps, self.recent_gradients, slot, alone
        ).to(x.dtype)

    @torch.no_grad()
    def _advance(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """χ in use, r, this batch's row of the buffers, and 1 where it stands alone."""
        step = self.num_batches_tracked + 1
        slot = kept((step % self.recent_squares.shape[0]).view(1))
        now = mean_square(x)
        alone = kept((step <= self.last_alone).to(now.dtype))
        self.recent_squares.index_copy_(0, slot, now[None].to(self.recent_squares.dtype))
        square = kept(torch.where(alone > 0, now, self.recent_squares.mean(0).to(now.dtype)))
        ratio = (square + self.eps) / (as_float(self.running_square) + self.eps)
        r = ratio.sqrt().clamp(1 / self.rmax, self.rmax)
        r = kept(torch.where(step <= self.last_held, torch.ones_like(r), r))
        self.running_square.lerp_(square.to(self.running_square.dtype), self.momentum)
        self.num_batches_tracked.add_(1)
        return square, r, slot, alone

    def averaged_share(self) -> float:
        """Share of the training forwards so far that used averages over batches."""
        steps = int(self.num_batches_tracked)
        return max(steps - self.last_alone, 0) / steps if steps else 0.0

    def extra_repr(self) -> str:
        """Also the buffer, the limit of r and where the warm-up ends."""
        return (
            f"{super().extra_repr()}, buffer_size={len(self.recent_squares)}, "
            f"rmax={self.rmax:g}, momentum={self.momentum:g}, "
            f"alone to step {self.last_alone}, r = 1 to step {self.last_held}"
        )
