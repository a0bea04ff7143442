r"""Batch-Instance Normalization: a learned gate between batch and instance norm.

    y = gamma·(ρ·x̂_B + (1 − ρ)·x̂_I) + beta,  ρ in [0, 1], one per channel

x̂_B is batch norm (running averages in evaluation), x̂_I instance norm by the sample's own
statistics, always. ρ starts at 1: batch norm.

The paper clips ρ after each step of the optimizer, ρ ← clip(ρ − η·∂L/∂ρ, 0, 1). A layer does not
see the optimizer, so a training forward clips the parameter in place before it uses it: the same
sequence of steps. A clamp inside the formula would not do: ρ starts at a bound, the first step
over it would end its gradient, and half of the channels would be batch norm for ever. Evaluation
clips what it uses and leaves the parameter alone. The authors' code also learns ρ at ten times the
rate of the rest and without weight decay, which is the optimizer's business and not built here.

Nam & Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks",
NeurIPS 2018, arXiv:1805.07925.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import keep_format
from normbench.kernels.grouped import check_groups, group_norm
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register


def observe(model: nn.Module) -> dict[str, float]:
    """The gate ρ as evaluation uses it, averaged over all channels of all layers."""
    gates = [
        m.rho.detach().clamp(0, 1) for m in model.modules() if isinstance(m, BatchInstanceNorm)
    ]
    return {"batch_instance_norm_rho_mean": float(torch.cat(gates).mean())} if gates else {}


@register(
    "batch_instance_norm",
    title="Batch-Instance Normalization",
    family="batch",
    equation=r"y = \gamma\Big(\rho\,\frac{x-\mu_{NHW}}{\sqrt{\sigma^2_{NHW}+\epsilon}}"
    r"+(1-\rho)\,\frac{x-\mu_{HW}}{\sqrt{\sigma^2_{HW}+\epsilon}}\Big)+\beta,\quad \rho\in[0,1]",
    params={
        "eps": Param(
            "added to both variances, inside the roots", minimum=0, exclusive_minimum=True
        ),
        "affine": Param("learn gamma and beta; rho is learned in any case", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks",
        ("Nam, Hyeonseob", "Kim, Hyo-Eun"),
        2018,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1805.07925",
    ),
    observe=observe,
    policy="1×1 maps and N,C input leave the instance norm one value per channel and sample and "
    "are refused, in evaluation too; a batch of one image is fine.",
)
class BatchInstanceNorm(RunningNorm):
    """Mixes batch and instance norm by a learned gate per channel, which starts at batch norm."""

    rho: nn.Parameter

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
        self.rho = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a map is a single value."""
        self.check(x)
        check_groups(x, self.num_features)
        rho = self._clipped_gate()
        batch_weight, instance_weight = rho, 1 - rho
        if self.weight is not None:
            batch_weight, instance_weight = self.weight * rho, self.weight * instance_weight
        if self.training:
            self.num_batches_tracked.add_(1)
        y = torch.batch_norm(
            x, batch_weight, self.bias, self.running_mean, self.running_var,
            self.training, self.momentum, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip
        # Contiguous for the reason that instance_norm has.
        own = group_norm(x.contiguous(), self.num_features, instance_weight, None, self.eps)
        return y + keep_format(own, x)

    def _clipped_gate(self) -> Tensor:
        if not self.training:
            return self.rho.clamp(0, 1)
        with torch.no_grad():
            self.rho.clamp_(0, 1)
        return self.rho.clone()  # backward of an earlier forward must not find its own ρ written to
