"""A layer that waits for its shortcut: act(norm(x) + shortcut) in blocks that know nothing of it.

A block says `x = norm(x)`, then `x += shortcut`, then `x = act(x)`. A waiting layer does nothing in
the first line but hand out an `Awaiting`; the sum in the second calls the layer, with both; and in
the third stands an identity. The block's own code runs, so this works for every block in which
nothing stands between norm and sum, and under `torch.compile` and `torch.export` too. The layer
keeps its path, its state and its hooks, which see tensors: they run when the layer does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

ADDITIONS = frozenset({"add", "add_", "iadd", "__add__", "__iadd__", "__radd__"})
"""How the functions are called that add: torch's, and Python's where torch compiles."""


_MIXED: dict[type[nn.Module], type[nn.Module]] = {}


class Awaiting:
    """What a waiting layer returns: not a tensor before something is added to it."""

    def __init__(self, layer: nn.Module, x: torch.Tensor) -> None:
        self.layer = layer
        self.x = x

    def __add__(self, shortcut: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(self.x, shortcut)
        return y

    __radd__ = __iadd__ = add = add_ = __add__

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        """Asked by torch for tensor + this, and for every operator where torch compiles."""
        if func.__name__ in ADDITIONS and len(args) == 2 and not kwargs:
            one, other = args
            waiting, shortcut = (one, other) if isinstance(one, cls) else (other, one)
            y: torch.Tensor = waiting.layer(waiting.x, shortcut)
            return y
        raise TypeError(
            f"{func.__name__} met the output of a norm that waits for a shortcut to be added: the "
            "model does here what it did not do when normbench.swap watched it"
        )


class Waiting(nn.Module):
    """What `defer` mixes into a layer's class."""

    def __call__(self, x: torch.Tensor, shortcut: torch.Tensor | None = None) -> Any:
        """Wait, unless the shortcut is there."""
        return Awaiting(self, x) if shortcut is None else super().__call__(x, shortcut)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the plain class, as the mixed one has no name in any module."""
        _, _, *state = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return _blank, (plain_class(self),), *state


def defer(layer: nn.Module) -> None:
    """Have a layer wait for its shortcut from now on."""
    layer.__class__ = _waiting(type(layer))


def release(layer: nn.Module) -> None:
    """Undo `defer`; a layer that does not wait stays as it is."""
    layer.__class__ = plain_class(layer)


def plain_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer, or what it was before `defer`."""
    cls: type[nn.Module] = type(layer)
    return cls.__bases__[1] if issubclass(cls, Waiting) else cls


def _waiting(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _MIXED:
        name, attributes = f"Waiting{cls.__name__}", {"__module__": cls.__module__}
        _MIXED[cls] = type(name, (Waiting, cls), attributes)
    return _MIXED[cls]


def _blank(cls: type[nn.Module]) -> nn.Module:
    """A layer without state, for `copy` and `pickle` to fill."""
    mixed = _waiting(cls)
    return mixed.__new__(mixed)
