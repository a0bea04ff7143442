"""For tests of fusing: methods that add the shortcut in plain torch, blocks written many ways."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import registry, surgery
from normbench.kernels.running import RunningNorm

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Fused(RunningNorm):
    """act(norm(x) + residual) in plain torch."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, 0.1)
        self.act = act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1,
            self.eps,
        )  # fmt: skip
        y = y if residual is None else y + residual
        return y if self.act is None else self.act(y)


class Forgetful(Fused):
    """A fault that a last gamma of zero would hide: next to a residual the norm is lost."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(x) if residual is None else F.relu(residual)


def add_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fused`, `apart` (the same, but adds no shortcuts) and `forgetful`, for one test."""
    known = {name: registry.get(name) for name in registry.list_methods()}
    monkeypatch.setattr(registry, "_METHODS", known)
    builders = {"fused": Fused, "apart": Fused, "forgetful": Forgetful}
    for name, builder in builders.items():
        registry.register(
            name,
            title=name,
            family="batch",
            equation="y",
            params={
                "eps": registry.Param("added to the variance"),
                "affine": registry.Param("learn gamma and beta", bool),
            },
            consumes_activation=True,
            fuses_residual=name != "apart",
        )(builder)


class Block(nn.Module):
    """A residual block written by hand, with one ReLU for all, as torchvision writes it."""

    def __init__(self, way: str = "plain") -> None:
        super().__init__()
        self.way = way
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.drop = nn.ReLU(way != "sum read twice"), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.way == "right":
            y = x + y
        elif self.way == "function":
            y = torch.add(y, x)
        elif self.way == "scaled":
            y = torch.add(y, x, alpha=2)
        elif self.way == "broadcast":
            y = y + x.mean((2, 3), keepdim=True)
        elif self.way == "no result":
            y.add_(x)
        elif self.way == "dropout":
            y = self.drop(y) + x
        elif self.way == "stochastic":
            y = y * torch.rand(len(x), 1, 1, 1).round() + x if self.training else y + x
        elif self.way == "second reader":
            return self.relu(y + x) * y.mean()
        else:
            y += x
        if self.way == "functional":
            return F.relu(y)
        return self.relu(y) + y if self.way == "sum read twice" else self.relu(y)


def by_hand(way: str = "plain") -> nn.Module:
    """A stem and two blocks."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, Block(way), Block(way), nn.Flatten(), nn.LazyLinear(4))


def made(name: str) -> nn.Module:
    """The same network every time; by timm's name, or one of ours."""
    torch.manual_seed(0)
    if name in dir(timm.models) or timm.is_model(name):
        return timm.create_model(name, num_classes=4)  # type: ignore[no-any-return]
    model = by_hand(name)
    model(X)
    return model


def swapped(name: str, method: str = "fused") -> tuple[nn.Module, surgery.SwapReport]:
    model = made(name)
    example = None if timm.is_model(name) else X
    return model, surgery.swap(model, method, example_input=example)
