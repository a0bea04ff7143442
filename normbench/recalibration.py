r"""Precise batch norm: running statistics taken anew, for the weights as they are.

    μ_pop = E[x],  σ²_pop = E[x²] − E[x]²,  E over all values of all batches

The averages that training leaves are of weights that have moved on since. Here the network runs
over batches in the mode it has in training, with fixed weights, and each layer's averages become
the mean and the variance of everything that came in. Moments are pooled (by counts and deviations,
in float64), so that the variance is the population's: the average of the batch variances, which
`fvcore.nn.update_bn_stats` takes, lacks the spread of the batch means.

What is decided:

- All layers are measured in one pass, as in fvcore and in the paper: while it lasts, each layer
  normalizes by its batches, not by the statistics to come. What a deep layer gets is therefore
  measured under batch statistics of the layers before it, and batches of the size of training are
  the paper's choice; no second pass changes anything. Batch Renorm is the exception, whose training
  forward leans on its averages.
- Only the layers with running statistics are in training mode. The rest is as in evaluation, which
  the statistics are for: with dropout on they would be those of another network (Li et al. 2018,
  arXiv:1801.05134).
- A batch changes no state that the next could see: buffers are put back after each.
- `running_var` becomes the unbiased variance, as batch norm keeps it, `running_std` √(σ² + eps) of
  the biased one, as Batch Renorm keeps it.

Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normbench.kernels.mean_and_variance import mean_and_variance

METHODS = ("precise",)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the averages of a layer were from the population, averaged over channels.

    Attributes:
        mean: |μ_run − μ_pop|/σ_pop, the estimation shift.
        log_std: |log(σ_run/σ_pop)|.
    """

    mean: float
    log_std: float


@dataclass(frozen=True, slots=True)
class Recalibration:
    """What was done.

    Attributes:
        batches: how many were used.
        shifts: of each layer that was recalibrated, by its name in the model.
        unreached: names of layers that no batch came through; their averages stay.
    """

    batches: int
    shifts: dict[str, Shift]
    unreached: tuple[str, ...]

    @property
    def layers(self) -> int:
        """How many layers were recalibrated."""
        return len(self.shifts)

    @property
    def mean_shift(self) -> float:
        """The estimation shift, averaged over the layers."""
        return sum(s.mean for s in self.shifts.values()) / len(self.shifts) if self.shifts else 0.0


@dataclass(slots=True)
class _Moments:
    """Count, mean and sum of squared deviations per channel, in float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Pool another N,C,* tensor with what was seen (Chan, Golub & LeVeque 1979)."""
        values = x.numel() // x.shape[1]
        if values == 0:
            return
        dims = (0, *range(2, x.dim()))
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean, var = (t.double() for t in mean_and_variance(wide, dims))
        total = self.count + values
        distance = mean - self.mean.to(mean.device)
        between = distance.square() * (self.count * values / total)
        self.squares = self.squares.to(mean.device) + var * values + between
        self.mean = self.mean.to(mean.device) + distance * (values / total)
        self.count = total


def recalibrate(
    model: nn.Module, batches: Iterable[Any], *, method: str = "precise", at_most: int = 200
) -> Recalibration:
    """Set the running statistics of a model to those of the population that `batches` are from.

    Every layer that has running_mean and running_var or running_std is measured: torch's batch
    norms and ours. Weights, num_batches_tracked and all other buffers, training flags and the
    random state are left as they were; if anything fails, the statistics too.

    Args:
        model: in whatever mode; its layers have to be called, not only read.
        batches: inputs, or tuples that begin with one (then labels), on the model's device.
        method: `precise` is the only one.
        at_most: how many batches are used.

    Raises:
        ValueError: for an unknown method, a model without such a layer, one whose statistics are
            not those of its input's channels, or no batch.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    layers = dict(statistics_layers(model))
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no layer with running_mean and running_var or "
            "running_std: there is nothing to recalibrate"
        )
    found = {name: _Moments() for name in layers}
    count = _measure(model, layers, found, itertools.islice(batches, at_most))
    if count == 0:
        raise ValueError("there are no batches to recalibrate with")
    unreached = tuple(name for name, seen in found.items() if seen.count == 0)
    shifts = {n: _set(layers[n], seen) for n, seen in found.items() if seen.count}
    return Recalibration(count, shifts, unreached)


def statistics_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every layer with running_mean and running_var or running_std."""
    for name, module in model.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        if "running_mean" in buffers and ("running_var" in buffers or "running_std" in buffers):
            yield name, module


@torch.no_grad()
def _measure(
    model: nn.Module,
    layers: dict[str, nn.Module],
    found: dict[str, _Moments],
    batches: Iterable[Any],
) -> int:
    """Run the batches and pool what comes into the layers; how many there were."""

    def look(layer: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        # Where the averages are not of the whole input the layer says what they are of.
        of = getattr(layer, "statistics_of", None)
        x = inputs[0] if of is None else of(inputs[0])
        if x.dim() < 2 or x.shape[1] != layer.get_buffer("running_mean").numel():
            raise ValueError(
                f"{name or type(layer).__name__} keeps statistics of something else than the "
                f"channels of its N,C,* input, here of shape {tuple(x.shape)}: it cannot be "
                "recalibrated"
            )
        found[name].add(x)

    count = 0
    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda m, x, name=name: look(m, x, name))
            stack.callback(hook.remove)
        buffers = stack.enter_context(_as_it_was(model))
        model.eval()
        for layer in layers.values():
            layer.training = True
        for batch in batches:
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
            _restore(buffers)
            count += 1
    return count


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Buffers with copies of them; at the end buffers, flags and random states are put back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    flags = [(module, module.training) for module in model.modules()]
    tensors = itertools.chain(model.parameters(), model.buffers())
    devices = {t.device for t in tensors if t.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices, key=str)):
            yield buffers
    finally:
        _restore(buffers)
        for module, flag in flags:
            module.training = flag


def _restore(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, copy in buffers:
        buffer.copy_(copy)


@torch.no_grad()
def _set(layer: nn.Module, seen: _Moments) -> Shift:
    """Give the layer the statistics that were seen; how far its own were from them."""
    mean, biased = seen.mean, seen.squares / seen.count
    eps = float(getattr(layer, "eps", 0.0))
    std = torch.sqrt(biased + eps)
    running_mean = layer.get_buffer("running_mean")
    moved = (running_mean - mean).abs() / std
    running_mean.copy_(mean)
    buffers = dict(layer.named_buffers(recurse=False))
    if (running_std := buffers.get("running_std")) is not None:
        ratio = running_std.double() / std
        running_std.copy_(std)
    else:
        running_var = buffers["running_var"]
        ratio = torch.sqrt(running_var.double() + eps) / std
        running_var.copy_(biased * (seen.count / max(seen.count - 1, 1)))
    return Shift(float(moved.mean()), float(ratio.log().abs().mean()))
