"""Made-up methods for tests of probes: each has one answer that is known, often a bad one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normbench.capabilities import SETTINGS, THEMES, Answer

SMALL = {**SETTINGS, "channels": 8, "side": 6, "cost_side": 16, "rounds": 15}
PROBES = [probe for theme in THEMES.values() for probe in theme]

Answers = Callable[..., dict[str, Answer]]


class Layer(nn.Module):
    """A made-up method: no parameters, takes what builders are given."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__()
        self.num_features, self.act = num_features, act

    def forward(self, x: Tensor) -> Tensor:
        return x


class Refuses(Layer):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("not today")


class DetachedMean(Layer):
    """Depends on the batch, without a gradient that says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.detach().mean((0, 2, 3), keepdim=True)


class Constant(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class NotFinite(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


class SteepAtZero(Layer):
    """A finite output whose gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).abs().sqrt()


class TwiceInEvaluation(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else 2 * x


class Standardized(Layer):
    """Batch normalization by hand, then deviation 3 and mean 5."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return 3 * (x - mean) / var.sqrt() + 5


class ScalesOnly(Layer):
    """Divides by one number for the whole batch: invariant to the input's scale alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean().sqrt()


class ShiftsOnly(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class ForgetsLayout(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


class SquaresInHalf(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x.square() / 300


class SubtractsInHalf(Layer):
    """Statistics in the input's own type."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        return (x - mean) / (x.square().mean((0, 2, 3), keepdim=True) - mean.square()).sqrt()


class _OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * grad * x**2


class OnlyOnce(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return _OnlyOnce.apply(x)  # type: ignore[no-any-return]


class _WrongTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * grad * x.detach() ** 2


class WrongTwice(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return _WrongTwice.apply(x)  # type: ignore[no-any-return]


class Noisy(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Branches(Layer):
    """Looks at the data to decide, which no tracer can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class EightSamples(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(8, *x.shape[1:])


class Unused(Layer):
    """A parameter without a gradient, which DDP waits for."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__(num_features)
        self.idle = nn.Parameter(torch.ones(num_features))


class MixesChannels(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=1)


class MixesPositions(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=3)


class SixPasses(Layer):
    """Three multiplications, each of which keeps its inputs for backward; buffers and state."""

    def __init__(self, num_features: int, *, act: nn.Module | None = None) -> None:
        super().__init__(num_features)
        self.scale = nn.Parameter(torch.ones(3, num_features))
        self.register_buffer("running", torch.zeros(num_features, num_features))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scale:
            x = (x * scale[:, None, None]).exp()
        return x


class OwnedReLU(Layer):
    """Applies its activation, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.act is None else self.act(x)  # type: ignore[no-any-return]


class Convolves(Layer):
    """A 1×1 convolution as a matrix product: 2·8 per element with 8 channels."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.eye(8) @ x.flatten(2)).reshape(x.shape)
