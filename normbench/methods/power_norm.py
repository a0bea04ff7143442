r"""Power Normalization.

    y = gamma·z + beta,  z = x/√(ψ² + eps),  ψ² the running mean of E[x²] from before this batch
    dx = (g − ν·z)/√(ψ² + eps),  g = gamma·dy
    ψ² ← 0.9·ψ² + 0.1·E[x²],  ν ← ν·(1 − 0.1·E[z²]) + 0.1·E[g·z]

over N,H,W of the batch; ν is taken from before its update. Nothing is centred, and the backward is
not the derivative of the forward. During the warm-up z is taken by the batch's own E[x²], and its
weight in ψ² is 1 − 0.9·(1 − 1/t) at batch t, so that nothing of the initial 1 stays, as in the
authors' code (which has 0.1 already at the last batch of the warm-up). Evaluation uses ψ².

The paper divides dx by the ψ of the forward, as here; the authors' code divides by this batch's
√E[x²] after the warm-up too. Their warm-up is 1000 steps by default in one place and 10000 in
another; most layers of their transformers take the learning rate's, 8000 in their scripts. Their
layer first divides every token by its own root mean square, in as many groups of channels as there
are heads; that is not part of it here.

Shen, Yao, Gholami, Mahoney & Keutzer, "PowerNorm: Rethinking Batch Normalization in Transformers",
ICML 2020, arXiv:2003.07845.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.kept import kept
from normbench.kernels.uncentred import mean_square, power_scale, scale
from normbench.registry import Citation, Param, register


def observe(model: nn.Module) -> dict[str, float]:
    """Share of training forwards, averaged over layers, that came after the warm-up."""
    layers = [m for m in model.modules() if isinstance(m, PowerNorm)]
    shares = [layer.running_share() for layer in layers]
    return {"power_norm_running_share": sum(shares) / len(shares)} if shares else {}


@register(
    "power_norm",
    title="Power Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x}{\sqrt{\psi^2_{t-1}+\epsilon}}+\beta,\quad"
    r" \psi^2_t = \alpha\,\psi^2_{t-1}+(1-\alpha)\,\mathbb{E}_{NHW}[x^2]",
    params={
        "warmup": Param("batches that use their own E[x²]", int, minimum=0),
        "eps": Param("added to ψ², inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in ψ²", minimum=0, maximum=1),
        "gradient_momentum": Param("weight of the new batch in ν", minimum=0, maximum=1),
    },
    citation=Citation(
        "PowerNorm: Rethinking Batch Normalization in Transformers",
        ("Shen, Sheng", "Yao, Zhewei", "Gholami, Amir", "Mahoney, Michael W.", "Keutzer, Kurt"),
        2020,
        "International Conference on Machine Learning (ICML)",
        "2003.07845",
    ),
    observe=observe,
    policy="E[x²] exists for any input, a single value too. A batch norm's running averages are "
    "not taken over.",
)
class PowerNorm(ChannelNorm):
    """Scales by a running root mean square; the backward follows a running statistic too."""

    running_square: Tensor
    running_gradient: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        warmup: int = 1000,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
        gradient_momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.warmup, self.momentum, self.gradient_momentum = warmup, momentum, gradient_momentum
        self.register_buffer("running_square", torch.ones(num_features))
        self.register_buffer("running_gradient", torch.zeros(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        if not self.training:
            return scale(x, self.weight, self.bias, self.running_square, self.eps)
        wide = as_float(x)
        square, now = self._advance(wide)
        weight = torch.ones_like(now) if self.weight is None else as_float(self.weight)
        bias = torch.zeros_like(now) if self.bias is None else as_float(self.bias)
        return power_scale(
            wide, (weight, bias), square, now, self.eps,
            self.running_gradient, self.gradient_momentum,
        ).to(x.dtype)  # fmt: skip

    @torch.no_grad()
    def _advance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ψ² in use and E[x²] of this batch; moves the running value."""
        step = self.num_batches_tracked + 1
        warm = step <= self.warmup
        now = mean_square(x)
        running = as_float(self.running_square)
        square = kept(torch.where(warm, now, running))
        share = 1 - (1 - self.momentum) * torch.where(warm, 1 - 1 / step.to(now.dtype), 1.0)
        self.running_square.copy_(running.lerp(now, share.to(now.dtype)))
        self.num_batches_tracked.add_(1)
        return square, now

    def running_share(self) -> float:
        """Share of the training forwards so far that came after the warm-up."""
        steps = int(self.num_batches_tracked)
        return max(steps - self.warmup, 0) / steps if steps else 0.0

    def extra_repr(self) -> str:
        """Also the weights of a batch and the warm-up."""
        return (
            f"{super().extra_repr()}, momentum={self.momentum:g}, "
            f"gradient_momentum={self.gradient_momentum:g}, warmup={self.warmup}"
        )
