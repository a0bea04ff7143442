r"""Weight Normalization.

    w = g·v/‖v‖  per filter,    y = gamma·(w∗x − m)/√(s + eps) + beta

Every convolution with more than one weight a filter gets g, which starts at ‖v‖, so that the
function is the model's own at first; ‖v‖ is taken over the fan-in, without an eps of its own.

m and s are the data-dependent initialisation (section 3, equations 5 and 6): mean and biased
variance of the channel in the layer's first training batch, constants from then on and in the
backward. The paper writes them into g and b once; here they stay in the buffers `running_mean` and
`running_var` beside gamma and beta, so that only the optimizer changes parameters and a zero gamma
stays zero. In place of a batch norm that has been trained its averages are taken over, and the
function is the same. With `data_init=False` they stay 0 and 1.

With `mean_only` (section 4) the batch's own mean is subtracted, with its gradient, and m is its
running average, for evaluation.

Salimans & Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep
Neural Networks", NeurIPS 2016, arXiv:1602.07868.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbench.kernels.channels import as_float
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register

TINY = 1e-12
"""Smallest norm divided by: a filter of zeros stays zeros, without a NaN in its gradient."""


class Directed(nn.Module):
    """The parametrization: a weight v to g·v/‖v‖, filter by filter, with g of its own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        length = weight.detach().flatten(1).norm(dim=1)
        self.g = nn.Parameter(length, requires_grad=weight.requires_grad)  # frozen as the weight

    def forward(self, weight: Tensor) -> Tensor:
        """g·v/‖v‖ for a weight of shape O,I,*; computed in float32 or wider."""
        rows = as_float(weight).flatten(1)
        length = torch.linalg.vector_norm(rows, dim=1).clamp_min(TINY)
        scaled: Tensor = rows * (as_float(self.g) / length).unsqueeze(1)
        return scaled.to(weight.dtype).view_as(weight)


def reparametrize(conv: nn.Module, **_: object) -> None:
    """Puts the parametrization on a convolution; the method's parameters concern the slots."""
    weight = conv.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(conv, "weight", Directed(weight))


@register(
    "weight_norm",
    title="Weight Normalization",
    family="weight",
    equation=r"w_{o} = g_{o}\,\frac{v_{o}}{\Vert v_{o}\Vert},\quad"
    r" y = \gamma\,\frac{w * x-m}{\sqrt{s+\epsilon}}+\beta",
    params={
        "data_init": Param("m, s from the first training batch; else 0 and 1", kind=bool),
        "mean_only": Param("subtract the batch's mean: mean-only batch norm", kind=bool),
        "eps": Param("added to s, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new mean in m with mean_only", minimum=0, maximum=1),
    },
    citation=Citation(
        "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep "
        "Neural Networks",
        ("Salimans, Tim", "Kingma, Diederik P."),
        2016,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1602.07868",
    ),
    weight=reparametrize,
    policy="In training a channel needs two values (N·H·W), else it refuses. Linear layers and "
    "convolutions whose filters are a single number keep their weights; gamma stands beside g.",
)
class WeightNorm(RunningNorm):
    """Learns length and direction of filters apart; slots use the first batch's statistics."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        data_init: bool = True,
        mean_only: bool = False,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.data_init, self.mean_only = data_init, mean_only

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        if not self.training:
            return self.normalize_by_running(x)
        self.check_batch(x)
        mean, var = self._constants(x)
        bias: Tensor | None = self.bias
        if self.mean_only:
            now = as_float(x).mean((0, *range(2, x.dim())))
            mean = now.detach()
            self._follow(mean)
            # Zero, with the gradient of −gamma·μ/√(s + eps): the op takes its mean as a constant.
            shift = (mean - now) * torch.rsqrt(as_float(var) + self.eps)
            bias = (
                shift
                if self.bias is None or self.weight is None
                else (self.bias + self.weight * shift)
            )
        self.num_batches_tracked.add_(1)
        return torch.batch_norm(x, self.weight, bias, mean, var, False, 0.0, self.eps, False)

    def _constants(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The constants m and s: of this batch if it is the first, which are then kept."""
        step = self.num_batches_tracked
        # On a GPU reading the step would make the host wait; there the statistics are taken anew
        # in every step and forgotten.
        on_host = step.device.type == "cpu" and not torch.compiler.is_compiling()
        if not self.data_init or (on_host and int(step) > 0):
            return self.running_mean, self.running_var
        with torch.no_grad():
            batch = torch.batch_norm_update_stats(as_float(x), None, None, 0.0)
            for kept, now in zip((self.running_mean, self.running_var), batch, strict=True):
                kept.copy_(torch.where(step == 0, now.to(kept.dtype), kept))
        # Copies: a second forward before the backward writes to the originals.
        return self.running_mean.clone(), self.running_var.clone()

    def _follow(self, mean: Tensor) -> None:
        """The running average of the batch's mean; after an initialisation it is that already."""
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)

    def extra_repr(self) -> str:
        """Also what the statistics are."""
        return f"{super().extra_repr()}, data_init={self.data_init}, mean_only={self.mean_only}"
