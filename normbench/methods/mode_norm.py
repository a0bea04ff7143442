r"""Mode Normalization.

    y = gamma·Σ_k g_nk·(x − μ_k)/√(σ²_k + eps) + beta,  g_n = softmax(W·x̄_n + b)
    μ_k = Σ_n g_nk·x̄_n/Σ_n g_nk,  σ²_k = Σ_n g_nk·mean_HW (x_n − μ_k)²/Σ_n g_nk

x̄_n is the mean of sample n over H,W, μ_k and σ²_k have a value per channel. K = 2 modes, in the
authors' code. Evaluation, as there: running averages of each mode's E[x] and E[x²] (`running_mean`
and `running_square`, K·C values, mode by mode; weight of the new batch 0.1), the variance their
E[x²] − E[x]²; they start as mean 0 and variance 1, the code's at 0. The weights g_nk/Σ_n g_nk are
a softmax over the batch of log g, so that a mode that no sample chooses gives no 0/0.

`gate_weight` (W, K·C values, mode by mode) starts at 1/K + 0.01·z, z standard normal, as in the
authors' code: without z all modes would stay alike. Here z comes from a generator of its own with
seed 0, the same in every layer of that size. `gate_bias` starts at 0; the code has torch's ±1/√C.

Deecke, Murray & Bilen, "Mode Normalization", ICLR 2019, arXiv:1810.05466.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.moments import from_rows, moments, move, sample_rows, scale_shift
from normbench.registry import Citation, Param, register


@register(
    "mode_norm",
    title="Mode Normalization",
    family="mixture",
    equation=r"y = \gamma\sum_k g_{nk}\,\frac{x-\mu_k}{\sqrt{\sigma^2_k+\epsilon}}+\beta,\quad"
    r" g_n=\mathrm{softmax}(W\bar x_n+b),\ \mu_k = \frac{\sum_n g_{nk}\bar x_n}{\sum_n g_{nk}}",
    params={
        "modes": Param("number of modes K; 1 is batch norm", int, minimum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Mode Normalization",
        ("Deecke, Lucas", "Murray, Iain", "Bilen, Hakan"),
        2019,
        "International Conference on Learning Representations (ICLR)",
        "1810.05466",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses. With 1×1 maps or "
    "N,C input the gates see the values themselves.",
)
class ModeNorm(ChannelNorm):
    """Normalizes by the statistics of K modes, to which a gate assigns every sample softly."""

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_square: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        modes: int = 2,
        eps: float | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, True)
        self.modes, self.momentum = modes, momentum
        size = modes * num_features
        z = torch.randn(size, generator=torch.Generator().manual_seed(0), device="cpu")
        self.gate_weight = nn.Parameter(1 / modes + 0.01 * z.to(self.weight.device))
        self.gate_bias = nn.Parameter(torch.zeros(modes))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_square", torch.ones(size))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check_batch(x) if self.training else self.check(x)
        rows = sample_rows(as_float(x))
        mean, var = (m.view(x.shape[:2]) for m in moments(rows))
        # N,K,C sums in place of matrix products, which autocast would do in half
        logits = (mean[:, None] * as_float(self.gate_weight).view(self.modes, -1)).sum(2)
        log_gates = torch.log_softmax(logits + as_float(self.gate_bias), 1)
        if self.training:
            centers, variances = self._batch_statistics(mean, var, log_gates)
        else:
            centers = as_float(self.running_mean).view(self.modes, -1)
            square = as_float(self.running_square).view(self.modes, -1)
            variances = (square - centers.square()).clamp(min=0)
        shares = log_gates.exp()[:, :, None] * torch.rsqrt(variances + self.eps)
        scale = as_float(self.weight) * shares.sum(1)
        shift = as_float(self.bias) - as_float(self.weight) * (shares * centers).sum(1)
        return from_rows(scale_shift(rows, scale.flatten(), shift.flatten()), x)

    def _batch_statistics(
        self, mean: Tensor, var: Tensor, log_gates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of every mode, K,C, after they moved the running averages."""
        share = torch.softmax(log_gates, 0)[:, :, None]
        centers = (share * mean[:, None]).sum(0)
        variances = (share * (var[:, None] + (mean[:, None] - centers).square())).sum(0)
        self.num_batches_tracked.add_(1)
        move(self.running_mean, centers.flatten(), self.momentum)
        move(self.running_square, (variances + centers.square()).flatten(), self.momentum)
        return centers, variances

    def extra_repr(self) -> str:
        """Also the number of modes."""
        return f"{super().extra_repr()}, modes={self.modes}, momentum={self.momentum:g}"
