r"""Cross-Iteration Batch Normalization.

    y = gamma·(x − μ̄)/√(ν̄ − μ̄² + eps) + beta
    μ̄ = mean over τ = 0…k of μ_τ(θ),   ν̄ = mean over τ of max(ν_τ(θ), μ_τ(θ)²)
    μ_τ(θ) ≈ μ_τ + ⟨∂μ_τ/∂θ_τ, θ − θ_τ⟩,   ν likewise

μ_τ and ν_τ are the means of x and x² over the batch τ steps ago, θ the weight of the convolution
before the slot as it is now and θ_τ as it was then; each channel's derivative is that by its own
filter alone. k is `buffer`, 3 as in the authors' code: up to three past batches beside the present
one, whose statistics alone carry a gradient. Evaluation by running averages of each batch's own
statistics, the variance's unbiased, as in batch norm. The authors' detectors burn in for 8 epochs;
`burn_in` counts forwards and is 0, since a layer does not know how many an epoch has.

Computed with variances in ν's place, the same to the last term and without its cancellation:
ν_τ(θ) − μ_τ(θ)² = σ²_τ + ⟨∂σ²_τ/∂θ_τ, θ − θ_τ⟩ − (μ_τ(θ) − μ_τ)². The paper's max is that this is
not below 0 (the authors' code leaves such a τ out), and eps stands inside the root as in batch norm
(in the code it is added to the deviation, unless told otherwise). The derivatives are autograd's:
two more backward passes of the convolution's weight a step.

The convolution is the one registered last before the slot, if its outputs are the slot's channels;
surgery tells the layer. The past is no part of the state_dict: after loading it fills anew.

Yao, Cao, Zheng, Huang & Lin, "Cross-Iteration Batch Normalization", CVPR 2021, arXiv:2002.05712.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from normbench.kernels.branches import preceding_convolution
from normbench.kernels.channels import as_float
from normbench.kernels.mean_and_variance import mean_and_variance
from normbench.kernels.running import RunningNorm
from normbench.registry import Citation, Param, register

if TYPE_CHECKING:
    from normbench.surgery.report import Slot


class Past(NamedTuple):
    """One batch: mean and variance per channel, their derivatives by a weight, and that weight."""

    mean: Tensor
    var: Tensor
    d_mean: Tensor
    d_var: Tensor
    weight: Tensor

    def at(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance as they would have been with this weight, to first order in E x²."""
        step = weight - self.weight
        moved = (self.d_mean * step).flatten(1).sum(1)
        var = self.var + (self.d_var * step).flatten(1).sum(1) - moved.square()
        return self.mean + moved, var.clamp_min(0)


def tell_convolutions(model: nn.Module, slots: tuple[Slot, ...], **_: object) -> None:
    """Tells every layer the convolution before it."""
    for slot in slots:
        for layer in model.get_submodule(slot.name).modules():
            if isinstance(layer, CrossIterationBN):
                layer.follow(preceding_convolution(model, slot.name))


def observe(model: nn.Module) -> dict[str, float]:
    """Share of the layers that know the convolution before them."""
    layers = [m for m in model.modules() if isinstance(m, CrossIterationBN)]
    known = sum(layer.convolution is not None for layer in layers)
    return {"cross_iteration_share": known / len(layers)} if layers else {}


@register(
    "cross_iteration_bn",
    title="Cross-Iteration Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\bar\mu}{\sqrt{\bar\nu-\bar\mu^2+\epsilon}}+\beta,\quad"
    r" \bar\mu = \frac{1}{k+1}\sum_{\tau=0}^{k}\Big(\mu_{\tau}"
    r"+\frac{\partial\mu_{\tau}}{\partial\theta_{\tau}}(\theta-\theta_{\tau})\Big)",
    params={
        "buffer": Param("past batches k averaged with the present one", int, minimum=1),
        "burn_in": Param("training forwards of batch norm before that", int, minimum=0),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Cross-Iteration Batch Normalization",
        ("Yao, Zhuliang", "Cao, Yue", "Zheng, Shuxin", "Huang, Gao", "Lin, Stephen"),
        2021,
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
        "2002.05712",
    ),
    model=tell_convolutions,
    observe=observe,
    policy="As batch_norm: two values per channel in training, else it refuses. A layer without a "
    "convolution before it, or where no gradient is asked for, is batch norm; the metric "
    "cross_iteration_share says how many know theirs.",
)
class CrossIterationBN(RunningNorm):
    """Batch norm over the last few batches, compensated for how the weights moved since."""

    convolution: nn.Module | None

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        buffer: int = 3,
        burn_in: int = 0,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.buffer, self.burn_in = buffer, burn_in
        self.past: list[Past] = []
        self._seen = 0
        self.follow(None)

    def follow(self, convolution: nn.Module | None) -> None:
        """Takes statistics of earlier batches to the present weight of this convolution."""
        # Known, not owned: as a submodule it would be in the state twice.
        object.__setattr__(self, "convolution", convolution)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        if not self.training:
            return self.normalize_by_running(x)
        self.check_batch(x)
        self.num_batches_tracked.add_(1)
        if self.convolution is not None and torch.is_grad_enabled() and x.requires_grad:
            weight = self.convolution.weight
            self._seen += 1
            if isinstance(weight, Tensor) and weight.requires_grad and self._seen > self.burn_in:
                return self._across(x, weight)
        return torch.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var,
            True, self.momentum, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip

    def _across(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = as_float(x)
        mean, var = mean_and_variance(wide, (0, *range(2, x.dim())))
        d_mean, d_var = _slope(mean, weight), _slope(var, weight)
        now = as_float(weight.detach()).clone()
        moved = [past.at(now) for past in self.past]
        means = torch.stack([mean, *(m for m, _ in moved)])
        variances = torch.stack([var, *(v for _, v in moved)])
        self.past.insert(0, Past(mean.detach(), var.detach(), d_mean, d_var, now))
        del self.past[self.buffer :]
        self._update(mean.detach(), var.detach(), x.numel() // self.num_features)
        # ν̄ − μ̄²: the mean of the variances and the variance of the means.
        scale = torch.rsqrt(variances.mean(0) + means.var(0, correction=0) + self.eps)
        if self.weight is not None:
            scale = as_float(self.weight) * scale
        shift = -means.mean(0) * scale
        if self.bias is not None:
            shift = shift + as_float(self.bias)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, values: int) -> None:
        unbiased = var * (values / (values - 1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(now.to(running.dtype), self.momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.past.clear()  # of another device or type from now on
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.past.clear()
        self._seen = int(self.num_batches_tracked)

    def extra_repr(self) -> str:
        """Also the number of batches, and whether the layer is batch norm for want of a θ."""
        known = self.convolution is not None
        return f"{super().extra_repr()}, buffer={self.buffer}, convolution={known}"


def _slope(statistic: Tensor, weight: Tensor) -> Tensor:
    """The derivative of each channel's value by its filter; 0 where that has no part in it."""
    total = statistic.sum()
    (slope,) = torch.autograd.grad(total, weight, retain_graph=True, materialize_grads=True)
    return as_float(slope)
