"""The method under examination: its layers and the inputs they are given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from normbench import registry, surgery
from normbench.registry import MethodInfo, TrainingPlan
from normbench.surgery import weights

SETTINGS: Mapping[str, Any] = {
    "fast": False,
    "channels": 64,
    "side": 14,
    "forwards": 50,
    "cost_side": 28,
    "rounds": 30,
}
"""Of a cell's configuration: whether slow probes are left out, channels and side of the maps,
training forwards before train and eval are compared, side of the maps where costs are measured,
timed rounds."""


@dataclass(frozen=True)
class Subject:
    """A method with its parameters, and how it is examined.

    Attributes:
        method: catalogue name.
        params: its parameters.
        device: where.
        batch: samples of a batch.
        seed: every probe starts from it.
        settings: as `SETTINGS`.
        activation: whether a ReLU follows, which methods that own their activation then hold.
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch: int = 8
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=lambda: SETTINGS)
    activation: bool = True

    @property
    def info(self) -> MethodInfo:
        """The catalogue entry."""
        return registry.get(self.method)

    @property
    def owns_activation(self) -> bool:
        """Whether the layer applies the activation itself."""
        return self.info.consumes_activation

    @property
    def fast(self) -> bool:
        """Whether slow probes are left out."""
        return bool(self.settings["fast"])

    def without_activation(self) -> Subject:
        """The same method at a slot that no activation follows."""
        return replace(self, activation=False)

    def layer(self, channels: int | None = None) -> nn.Module:
        """The layer in training mode, with the ReLU if it owns one; told of 100 steps to come."""
        act = nn.ReLU() if self.activation and self.owns_activation else None
        features = self.settings["channels"] if channels is None else channels
        layer = registry.build(self.method, features, act=act, **self.params)
        if self.info.prepare is not None:
            self.info.prepare(layer, TrainingPlan(total_steps=100))
        return layer.to(self.device).train()

    def varied(self, channels: int | None = None) -> nn.Module:
        """The layer in float64 with no learned parameter at its initial value."""
        layer = self.layer(channels).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return layer

    def slot(self) -> nn.Module:
        """The layer and the ReLU after it, whoever applies that; without activation the layer."""
        layer = self.layer()
        owned = self.owns_activation or not self.activation
        return layer if owned else nn.Sequential(layer, nn.ReLU()).to(self.device)

    def reference(self) -> nn.Module:
        """What `slot` is compared with: `nn.BatchNorm2d` with or without ReLU."""
        norm = nn.BatchNorm2d(self.settings["channels"])
        layer = nn.Sequential(norm, nn.ReLU()) if self.activation else norm
        return layer.to(self.device)

    def convolved(self, in_channels: int = 16) -> nn.Sequential:
        """A convolution as the method's weight side leaves it, then the layer; in float64."""
        conv = nn.Conv2d(in_channels, self.settings["channels"], 3, bias=False)
        model = nn.Sequential(conv.to(self.device).double(), self.varied())
        weights.take_over(model, self.info, registry.resolve_params(self.method, self.params))
        return model

    def operate(self, model: nn.Module, example: Tensor) -> None:
        """Put the method into a model, in place."""
        surgery.swap(model, self.method, example_input=example, **self.params)
        if self.info.prepare is not None:
            self.info.prepare(model, TrainingPlan(total_steps=100))

    def images(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch whose channels have means of about ±1 and deviations of 0.5 to 2.

        The channels' means and deviations are the same in every call, the images are not.

        Args:
            *shape: N, C, H, W; None for the usual one.
            dtype: type of the result.
        """
        side = self.settings["side"]
        size = shape or (self.batch, self.settings["channels"], side, side)
        fixed = torch.Generator().manual_seed(0)
        mean = torch.randn(size[1], 1, 1, generator=fixed, dtype=torch.float64)
        deviation = 0.5 + 1.5 * torch.rand(size[1], 1, 1, generator=fixed, dtype=torch.float64)
        x = mean + deviation * torch.randn(size, dtype=torch.float64)
        return x.to(self.device, dtype)

    def activations(self) -> Tensor:
        """A large batch, where costs are measured."""
        side = self.settings["cost_side"]
        return self.images(self.batch, self.settings["channels"], side, side)

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Random numbers from the seed on, whatever was drawn before, and afterwards as before."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            yield


def gradients(
    y: Tensor, layer: nn.Module, x: Tensor, projection: Tensor | None = None
) -> list[Tensor]:
    """Gradients of a projection of `y`, random if none is given, to `x` and every parameter."""
    if projection is None:
        projection = torch.randn(y.shape, dtype=torch.float64).to(y.device, y.dtype)
    learned = [p for p in layer.parameters() if p.requires_grad]
    return list(torch.autograd.grad(y, [x, *learned], projection, materialize_grads=True))


def change(new: Tensor, old: Tensor) -> float:
    """‖new − old‖ relative to ‖old‖; 0 where both are zero."""
    difference = float((new - old).detach().double().norm())
    size = float(old.detach().double().norm())
    return difference / size if size else (float("inf") if difference else 0.0)
