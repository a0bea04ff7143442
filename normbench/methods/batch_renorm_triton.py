r"""Batch Renormalization with the activation and the residual of its slot, in our Triton kernels.

    y = φ(gamma·((x − μ)/σ·r + d) + beta + residual)

Equation, schedule and parameters are `batch_renorm`'s. On CUDA devices r, d, the schedule and the
running values are computed on the device, in the pass that merges the statistics; the rest costs
what batch norm costs (docs/decisions/005). Elsewhere, and in float64, the layer is `batch_renorm`
followed by the activation.

Checkpoints have `nn.BatchNorm2d`'s keys: σ is converted, running_var = running_std² − eps, when
state is saved and loaded. State of a batch norm starts the schedule anew; state of this layer
continues it (its version travels in the state dict's metadata, which safetensors drops).

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
from normbench.methods.batch_renorm import SCHEDULES, BatchRenorm, observe, prepare
from normbench.registry import Citation, Param, register


@register(
    "batch_renorm_triton",
    title="Batch Renormalization, fused (Triton)",
    family="batch",
    equation=r"y = \varphi\Big(\gamma\Big(\frac{x-\mu}{\sigma}\,r+d\Big)+\beta"
    r"+\mathrm{residual}\Big),\quad"
    r" r=\mathrm{clip}\Big(\frac{\sigma}{\sigma_{\mathrm{run}}}\Big),\ "
    r"d=\mathrm{clip}\Big(\frac{\mu-\mu_{\mathrm{run}}}{\sigma_{\mathrm{run}}}\Big)",
    params={
        "rmax": Param("limit of r once full: 1/rmax to rmax", minimum=1),
        "dmax": Param("limit of d once full: −dmax to dmax", minimum=0),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running values", minimum=0, maximum=1),
        "schedule": Param("unit of the three below", str, choices=tuple(SCHEDULES)),
        "hold": Param("r = 1, d = 0 until here; 5000 steps or 0.05 of training", minimum=0),
        "rmax_full": Param("rmax is reached here; 40000 steps or 0.4 of training", minimum=0),
        "dmax_full": Param("dmax is reached here; 25000 steps or 0.25 of training", minimum=0),
    },
    citation=Citation(
        "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
        ("Ioffe, Sergey",),
        2017,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1702.03275",
    ),
    consumes_activation=True,
    fuses_residual=True,
    fallback=fallback,
    prepare=prepare,
    observe=observe,
    policy="As batch_renorm; kernels and activations as batch_norm_triton.",
)
class BatchRenormTriton(FusedNorm, BatchRenorm):
    """Batch Renorm, residual and activation in one pass on CUDA; `batch_renorm` elsewhere."""

    _version = 3  # of the state: with running_var, and a step counter of our own
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
        newest = torch.tensor(0, dtype=torch.long)
        self.register_buffer("_newest_active", newest, persistent=False)
        self.own(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """N,C,* to the same shape: act(norm(x) + residual).

        Raises:
            ValueError: for one value per channel in training.
        """
        if not self.takes(x):
            return self.finish(super().forward(x), residual)
        return self.fused(x, residual, lambda r, act: self._kernel(x, r, act))

    def _kernel(self, x: Tensor, residual: Tensor | None, act: int) -> Tensor:
        from normbench.kernels.fused import batch_launches  # Triton is needed from here on
        from normbench.kernels.fused import batch_norm as kernels

        affine = (self.weight, self.bias, self.running_mean, self.running_std)
        if not self.training:
            self.check(x)
            return kernels.evaluated(
                x, residual, *affine, self.eps, act, standard_deviation=True
            )  # fmt: skip
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

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        std = destination.pop(f"{prefix}running_std")
        destination[f"{prefix}running_var"] = (std.square() - self.eps).clamp_min(0)

    def _load_from_state_dict(
        self,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        local_metadata: MutableMapping[str, Any],
        *args: Any,
    ) -> None:
        """Takes batch norm's state, whose schedule starts anew, and its own, which goes on."""
        counter = f"{prefix}num_batches_tracked"
        own = local_metadata.get("version") == self._version
        step = state_dict.get(counter) if own else None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if step is not None:
            self.num_batches_tracked.copy_(step)
            self._counted_from = int(step)
        self._newest_active.zero_()
