r"""Batch Renormalization.

    y = gamma·((x − μ)/σ·r + d) + beta,  σ = √(σ²_batch + eps)
    r = clip(σ/σ_run, 1/rmax, rmax),  d = clip((μ − μ_run)/σ_run, −dmax, dmax)

r and d come from the running values before this batch's update and carry no gradient. Evaluation:
gamma·(x − μ_run)/σ_run + beta. The running value is that of σ, not of its square.

The limits start at r = 1, d = 0, which is batch norm, hold there, then grow linearly to rmax and
dmax. In the paper the hold is 5,000 steps, rmax full at 40,000 and dmax at 25,000; with
`schedule="fraction"` it is 5%, 40% and 25% of training, whose length `prepare` tells. A step is a
training forward of the layer.

Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
NeurIPS 2017, arXiv:1702.03275.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from normbench.kernels.channels import HALF, ChannelNorm
from normbench.kernels.renorm import Limit, batch_renorm
from normbench.registry import Citation, Param, RegistryError, TrainingPlan, register

SCHEDULES = {"steps": (5000.0, 40000.0, 25000.0), "fraction": (0.05, 0.40, 0.25)}
"""hold, rmax_full and dmax_full where they are not given."""


def prepare(model: nn.Module, plan: TrainingPlan) -> None:
    """Tells every Batch Renorm layer how many training forwards are to come."""
    for layer in model.modules():
        if isinstance(layer, BatchRenorm):
            layer.plan(plan.total_steps)


def observe(model: nn.Module) -> dict[str, float]:
    """Share of training forwards, averaged over layers, in which r ≠ 1 in some channel."""
    layers = [m for m in model.modules() if isinstance(m, BatchRenorm)]
    shares = [layer.active_share() for layer in layers]
    return {"renorm_active_share": sum(shares) / len(shares)} if shares else {}


@register(
    "batch_renorm",
    title="Batch Renormalization",
    family="batch",
    equation=r"y = \gamma\Big(\frac{x-\mu}{\sigma}\,r+d\Big)+\beta,\quad"
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
    prepare=prepare,
    observe=observe,
    policy="As batch_norm: two values per channel in training, else it refuses. With "
    'schedule="fraction" it refuses to train beyond the hold until it is told how long '
    "training is.",
)
class BatchRenorm(ChannelNorm):
    """Batch norm corrected towards its running averages, so that training matches evaluation."""

    running_mean: Tensor
    running_std: Tensor
    num_batches_tracked: Tensor
    active_steps: Tensor
    _ones: Tensor
    _zeros: Tensor

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
        super().__init__(num_features, eps, affine)
        self.rmax, self.dmax, self.momentum, self.schedule = rmax, dmax, momentum, schedule
        given = zip((hold, rmax_full, dmax_full), SCHEDULES[schedule], strict=True)
        self.marks = tuple(usual if value is None else value for value, usual in given)
        if min(self.marks[1:]) < self.marks[0] or (schedule == "fraction" and max(self.marks) > 1):
            raise RegistryError(
                f"batch_renorm: hold, rmax_full and dmax_full are {self.marks} ({schedule}); "
                "expected hold to come first" + ", none above 1" * (schedule == "fraction")
            )
        self.total_steps: int | None = 1 if schedule == "steps" else None
        self._counted_from = 0
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_std", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.register_buffer("active_steps", torch.tensor(0, dtype=torch.long), persistent=False)
        for name, value in {"_ones": torch.ones(num_features), "_zeros": torch.zeros(1)}.items():
            self.register_buffer(name, value, persistent=False)

    def plan(self, total_steps: int) -> None:
        """Sets the length of training, in training forwards, that fractions refer to."""
        if self.schedule == "fraction":
            self.total_steps = total_steps

    def limits(self, step: Tensor | int) -> tuple[Limit, Limit]:
        """Rmax and dmax at the given step: numbers for a number, tensors for a tensor.

        Raises:
            ValueError: if the schedule is in fractions and nobody told the length of training.
        """
        if self.total_steps is None:
            if int(step) == 0 and self.marks[0] > 0:
                return 1.0, 0.0  # in the hold whatever the length: lets a model be tried out
            raise ValueError(
                'batch_renorm(schedule="fraction") does not know how long training is: call '
                "prepare(model, TrainingPlan(total_steps)) of its MethodInfo before training"
            )
        hold, rmax_full, dmax_full = (mark * self.total_steps for mark in self.marks)
        return (
            1 + (self.rmax - 1) * _ramp(step, hold, rmax_full),
            self.dmax * _ramp(step, hold, dmax_full),
        )

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        if not self.training:
            self.check(x)
            return torch.batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_std.square(),
                False, 0.0, 0.0, False,
            )  # fmt: skip
        self.check_batch(x)
        step = self.num_batches_tracked
        # On a GPU reading the step would make the host wait for the device; on the CPU it is
        # cheaper than the six small tensor operations it saves.
        on_host = step.device.type == "cpu" and not torch.compiler.is_compiling()
        rmax, dmax = self.limits(int(step) if on_host else step)
        self.num_batches_tracked.add_(1)
        if on_host and rmax == 1 and dmax == 0 and x.dtype not in HALF:  # batch norm, at its cost
            y, mean, inverse_std = torch.native_batch_norm(
                x, self.weight, self.bias, None, None, True, 0.0, self.eps
            )
            self._update(mean.detach(), inverse_std.detach().reciprocal())
            return y
        weight = self._ones if self.weight is None else self.weight
        bias = self._zeros if self.bias is None else self.bias
        y, mean, std, r = batch_renorm(
            x, weight, bias, self.running_mean, self.running_std, rmax, dmax, self.eps
        )
        self._update(mean, std)
        if not on_host:
            self.active_steps.add_((r != 1).any())
        elif not torch.equal(r, self._ones):
            self.active_steps.add_(1)
        return y

    def _update(self, mean: Tensor, std: Tensor) -> None:
        for running, now in ((self.running_mean, mean), (self.running_std, std)):
            now = now if now.dtype == running.dtype else now.to(running.dtype)
            running.lerp_(now, self.momentum)

    def active_share(self) -> float:
        """Share of the training forwards since construction or loading in which r ≠ 1."""
        steps = int(self.num_batches_tracked) - self._counted_from
        return int(self.active_steps) / steps if steps else 0.0

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any
    ) -> None:
        """Takes BatchNorm's state too: √(running_var + eps), and a schedule that starts anew."""
        var = state_dict.pop(f"{prefix}running_var", None)
        if var is not None and f"{prefix}running_std" not in state_dict:
            state_dict[f"{prefix}running_std"] = torch.sqrt(var + self.eps)
            state_dict[f"{prefix}num_batches_tracked"] = torch.zeros_like(self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._counted_from = int(self.num_batches_tracked)
        self.active_steps.zero_()

    def extra_repr(self) -> str:
        """Also the limits and their schedule."""
        return (
            f"{super().extra_repr()}, rmax={self.rmax:g}, dmax={self.dmax:g}, "
            f"momentum={self.momentum:g}, schedule={self.schedule}{self.marks}"
        )


def _ramp(step: Tensor | int, start: float, full: float) -> Limit:
    """0 up to step `start`, 1 from step `full`, linear between; a jump at `full` if they meet."""
    start = min(start, full - 1)
    share = (step - start) / (full - start)
    return share.clamp(0, 1) if isinstance(share, Tensor) else min(max(share, 0.0), 1.0)
