r"""Batch Renormalization with the activation and the residual of its slot, in our Triton kernels.

    y = φ(gamma·((x − μ)/σ·r + d) + beta + residual)

Equation, schedule and parameters are `batch_renorm`'s. On CUDA devices r, d, the schedule and the
running values are computed on the device, in the pass that merges the statistics; the rest costs
what batch norm costs (docs/decisions/005). Elsewhere, and in float64, the layer is `batch_renorm`
followed by the activation.

Averaged is σ, as in `batch_renorm`; kept is σ² − eps, under `nn.BatchNorm2d`'s name, `running_var`.
So checkpoints of a batch norm fit, and this layer's fit a batch norm. State of a batch norm starts
the schedule anew, state of this layer continues it. Which it is the version in the state dict's
metadata tells; a plain dictionary, as from safetensors, has none and counts as a batch norm's.

Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
NeurIPS 2017, arXiv:1702.03275.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from normbench.kernels.fused.dispatch import fallback
from normbench.kernels.fused.layer import FusedNorm
from normbench.kernels.renorm import batch_renorm
from normbench.methods.batch_renorm import BatchRenorm, observe, prepare
from normbench.registry import get, register

EAGER = get("batch_renorm")


@register(
    "batch_renorm_triton",
    title="Batch Renormalization, fused (Triton)",
    family="batch",
    equation=r"y = \varphi\Big(\gamma\Big(\frac{x-\mu}{\sigma}\,r+d\Big)+\beta"
    r"+\mathrm{residual}\Big),\quad"
    r" r=\mathrm{clip}\Big(\frac{\sigma}{\sigma_{\mathrm{run}}}\Big),\ "
    r"d=\mathrm{clip}\Big(\frac{\mu-\mu_{\mathrm{run}}}{\sigma_{\mathrm{run}}}\Big)",
    params=EAGER.params,
    citation=EAGER.citation,
    consumes_activation=True,
    fuses_residual=True,
    fallback=fallback,
    prepare=prepare,
    observe=observe,
    policy="As batch_renorm; kernels and activations as batch_norm_triton.",
)
class BatchRenormTriton(FusedNorm, BatchRenorm):
    """Batch Renorm, residual and activation in one pass on CUDA; `batch_renorm` elsewhere."""

    _version = 3  # of the state: batch norm's is 2
    running_var: Tensor
    _newest_active: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        rmax: float = 3.0,
        dmax: float = 5.0,
        eps: float = 1e-3,
        affine: bool | None = None,
        momentum: float = 0.01,
        schedule: str = "steps",
        hold: float | None = None,
        rmax_full: float | None = None,
        dmax_full: float | None = None,
    ) -> None:
        super().__init__(
            num_features, rmax=rmax, dmax=dmax, eps=eps, affine=affine, momentum=momentum,
            schedule=schedule, hold=hold, rmax_full=rmax_full, dmax_full=dmax_full,
        )  # fmt: skip
        del self.running_std
        counter = self._buffers.pop("num_batches_tracked")  # to stand behind, as in batch norm
        self.register_buffer("running_var", torch.ones(num_features) - self.eps)
        self.register_buffer("num_batches_tracked", counter)
        newest = torch.tensor(0, dtype=torch.long)
        self.register_buffer("_newest_active", newest, persistent=False)
        self.own(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """N,C,* to the same shape: act(norm(x) + residual).

        Raises:
            ValueError: for one value per channel in training.
        """
        if not self.takes(x):
            return self.finish(self._eager(x), residual)
        return self.fused(x, residual, lambda r, act: self._kernel(x, r, act))

    def _kernel(self, x: Tensor, residual: Tensor | None, act: int) -> Tensor:
        from normbench.kernels.fused import batch_launches  # Triton is needed from here on
        from normbench.kernels.fused import batch_norm as kernels

        affine = (self.weight, self.bias, self.running_mean, self.running_var)
        if not self.training:
            self.check(x)
            return kernels.evaluated(x, residual, *affine, self.eps, act)
        self.check_batch(x)
        counters = (self.num_batches_tracked, self.active_steps, self._newest_active)
        renorm = batch_launches.Renorm(*counters, self._schedule())
        y = kernels.batch_renorm(x, residual, *affine, renorm, self.momentum, self.eps, act)
        self.num_batches_tracked.add_(1)
        return y

    def _schedule(self) -> tuple[float, float, float, float, float]:
        """Rmax, dmax, hold, rmax_full and dmax_full in training forwards."""
        if self.total_steps is None:
            self.limits(self.num_batches_tracked)  # raises, unless this is the first step of a hold
            return 1.0, 0.0, 0.0, 1.0, 1.0
        hold, rmax_full, dmax_full = (mark * self.total_steps for mark in self.marks)
        return self.rmax, self.dmax, hold, rmax_full, dmax_full

    def _eager(self, x: Tensor) -> Tensor:
        """`batch_renorm`'s forward, on this layer's running value."""
        if not self.training:
            self.check(x)
            return torch.batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_var,
                False, 0.0, self.eps, False,
            )  # fmt: skip
        self.check_batch(x)
        rmax, dmax = self.limits(self.num_batches_tracked)
        weight = self._ones if self.weight is None else self.weight
        bias = self._zeros if self.bias is None else self.bias
        running_std = torch.sqrt(self.running_var + self.eps)
        y, mean, std, r = batch_renorm(
            x, weight, bias, self.running_mean, running_std, rmax, dmax, self.eps
        )
        self.num_batches_tracked.add_(1)
        self.active_steps.add_((r != 1).any())
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            running_std = running_std.lerp(std.to(running_std.dtype), self.momentum)
            self.running_var.copy_(running_std.square() - self.eps)
        return y

    def _load_from_state_dict(
        self,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        local_metadata: MutableMapping[str, Any],
        *args: Any,
    ) -> None:
        """Takes batch norm's state, whose schedule starts anew, its own, and `batch_renorm`'s."""
        counter, std = f"{prefix}num_batches_tracked", f"{prefix}running_std"
        own = local_metadata.get("version") == self._version or std in state_dict
        if std in state_dict:
            var = state_dict.pop(std).square() - self.eps
            state_dict[f"{prefix}running_var"] = var
        if counter in state_dict and not own:
            state_dict[counter] = torch.tensor(0, dtype=torch.long)
        # Past batch_renorm's own, which makes a running_std of a running_var.
        super(BatchRenorm, self)._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if not self.num_batches_tracked.is_meta:
            self._counted_from = int(self.num_batches_tracked)
        self.active_steps.zero_()
        self._newest_active.zero_()
