"""Where a module stands, and putting another one there."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def places(model: nn.Module, module: nn.Module) -> list[str]:
    """Every path at which this very module stands; a shared module has several."""
    return [path for path, m in model.named_modules(remove_duplicate=False) if m is module]


def put(model: nn.Module, paths: Iterable[str], module: nn.Module) -> None:
    """Put a module at every path. Its attributes in the parent keep their order."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = module
