r"""Online Normalization.

    z_t = (x_t − m_(t−1))/s_(t−1),  s = √(v + eps),  a_t = gamma·z_t + beta
    m_t = α·m_(t−1) + (1 − α)·μ_t,  v_t = α·v_(t−1) + (1 − α)·σ²_t + α·(1 − α)·(μ_t − m_(t−1))²
    y_t = a_t/√(E a_t² + eps), over C,H,W

t counts samples, the samples of a batch in their order; μ_t and σ²_t are over H,W of one sample.
α is 0.999. m, v are constants in the backward, which is not the derivative of the forward: what
would go along z and along 1 is taken out by a control with α_b = 0.99 that remembers what was left,

    g' = g − (1 − α_b)·v̂_(t−1)·z_t,         v̂_t = v̂_(t−1) + E[g'·z_t]
    dx = g'/s_(t−1) − (1 − α_b)·û_(t−1),     û_t = û_(t−1) + E[dx]

with g the gradient that reaches z; û and v̂ are the buffers `control_u` and `control_v`. Evaluation
uses m and v as they are, without control. Layer scaling is the paper's; its alternative,
`guard="clamp"`, limits a to ±5.

Chiley, Sharapov, Kosson, Koster, Reece, Samaniego de la Fuente, Subbiah & James, "Online
Normalization for Training Neural Networks", NeurIPS 2019, arXiv:1905.05894.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import as_float, keep_format
from normbench.kernels.kept import kept
from normbench.kernels.mean_and_variance import mean_and_variance
from normbench.kernels.online import controlled_norm, recurrence
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register

CLAMP = 5.0
"""Limit of the guard "clamp"."""


@register(
    "online_norm",
    title="Online Normalization",
    family="online",
    equation=r"y_t = \frac{a_t}{\sqrt{\mathbb{E}_{CHW}\,a_t^2+\epsilon}},\quad"
    r" a_t = \gamma\,\frac{x_t-\mu_{t-1}}{\sqrt{\sigma^2_{t-1}+\epsilon}}+\beta,\quad"
    r" \mu_t = \alpha\,\mu_{t-1}+(1-\alpha)\,\mathbb{E}_{HW}\,x_t",
    params={
        "guard": Param("against statistics that lag behind", str,
                       choices=("layer_scaling", "clamp", "none")),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of a sample in the statistics, 1 − α", minimum=0, maximum=1),
        "gradient_momentum": Param("1 − α_b of the backward's control", minimum=0, maximum=1),
    },
    citation=Citation(
        "Online Normalization for Training Neural Networks",
        (
            "Chiley, Vitaliy", "Sharapov, Ilya", "Kosson, Atli", "Koster, Urs", "Reece, Ryan",
            "Samaniego de la Fuente, Sofia", "Subbiah, Vishal", "James, Michael",
        ),
        2019,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1905.05894",
    ),
    policy="With 1×1 maps or N,C input a sample has no variance of its own, and that of the means "
    "over time is what is left. One value is enough.",
)  # fmt: skip
class OnlineNorm(RunningNorm):
    """Normalizes each sample by the statistics of those before it; controls the gradient alike."""

    control_u: Tensor
    control_v: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        guard: str = "layer_scaling",
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.001,
        gradient_momentum: float = 0.01,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.guard, self.gradient_momentum = guard, gradient_momentum
        self.register_buffer("control_u", torch.zeros(num_features))
        self.register_buffer("control_v", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        if self.training:
            y = self._train(as_float(x).reshape(*x.shape[:2], -1))
        else:
            y = self.normalize_by_running(as_float(x))
            if self.guard == "layer_scaling":
                square = y.square().flatten(1).mean(1)
                y = y * torch.rsqrt(square + self.eps).view(-1, *[1] * (x.dim() - 1))
        if self.guard == "clamp":
            y = y.clamp(-CLAMP, CLAMP)
        return keep_format(y.view(x.shape), x).to(x.dtype)

    def _train(self, x: Tensor) -> Tensor:
        """Output for N,C,L input, not clamped yet."""
        mean, var = mean_and_variance(x.detach(), (2,))
        before = self._advance(mean, var)
        z, z_mean, z_var = controlled_norm(
            x, (mean, var), before, (self.control_u, self.control_v), self.gradient_momentum
        )
        gamma = torch.ones_like(mean[0]) if self.weight is None else as_float(self.weight)
        beta = torch.zeros_like(mean[0]) if self.bias is None else as_float(self.bias)
        if self.guard == "layer_scaling":
            # E a² from the moments of z: no pass over the images.
            square = (gamma.square() * z_var + (gamma * z_mean + beta).square()).mean(1)
            scale = torch.rsqrt(square + self.eps)[:, None]
            gamma, beta = gamma * scale, beta * scale
        return torch.addcmul(beta[..., None], z, gamma[..., None])

    @torch.no_grad()
    def _advance(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1/s that each sample is normalized by; moves the running averages."""
        keep = torch.full_like(mean, 1 - self.momentum)
        mean_before, mean_after = recurrence(
            keep, self.momentum * mean, as_float(self.running_mean)
        )
        spread = var + (1 - self.momentum) * (mean - mean_before).square()
        var_before, var_after = recurrence(keep, self.momentum * spread, as_float(self.running_var))
        before = kept(mean_before), kept(torch.rsqrt(var_before + self.eps))
        self.running_mean.copy_(mean_after)
        self.running_var.copy_(var_after)
        self.num_batches_tracked.add_(1)
        return before

    def extra_repr(self) -> str:
        """Also the weight of the control, and the guard."""
        return (
            f"{super().extra_repr()}, gradient_momentum={self.gradient_momentum:g}, "
            f"guard={self.guard}"
        )
