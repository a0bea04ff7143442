"""What autograd keeps for the backward, and in whose forward it was kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

CASTS = ("ToCopyBackward", "TBackward", "TransposeBackward", "PermuteBackward")
"""Nodes between a parameter and autocast's copy of it, transposed or not."""

ELSEWHERE = ""
"""Stands for the part of the model outside of all slots."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes kept for the backward.

    Attributes:
        total: each storage once; parameters, buffers and the casts of parameters that autocast
            makes are left out.
        by_slot: what a slot kept first. The input of a norm is its producer's output, and belongs
            to whoever saved it earlier; its output, if the next layer saves it, to that layer.
    """

    total: int
    by_slot: Mapping[str, int]


def saved_bytes(
    model: nn.Module, forward: Callable[[], Any], slots: Mapping[str, nn.Module] | None = None
) -> Saved:
    """Run a forward pass and count what autograd keeps for its backward.

    What a function keeps by other ways than autograd's is not seen, nor what compiled code keeps.

    Args:
        model: its parameters and buffers are not counted.
        forward: runs it; the result is dropped.
        slots: modules to attribute to, by name.
    """
    own = {_storage(t) for t in chain(model.parameters(), model.buffers())}
    kept: dict[int, tuple[str, int]] = {}
    alive: list[Tensor] = []  # or another tensor may come to lie where one was
    running: list[str] = [ELSEWHERE]

    def remember(tensor: Tensor) -> Tensor:
        copied = _storage(_origin(tensor)) in own
        # Detached: a result saved by the node that made it would hold that node, and both for ever.
        tensor = tensor.detach()
        where = _storage(tensor)
        if where not in own and where not in kept:
            alive.append(tensor)
            if not copied:
                kept[where] = running[-1], tensor.untyped_storage().nbytes()
        return tensor

    with _watched(slots or {}, running), saved_tensors_hooks(remember, lambda tensor: tensor):
        forward()
    by_slot = dict.fromkeys(slots or {}, 0)
    for name, size in kept.values():
        if name != ELSEWHERE:
            by_slot[name] += size
    return Saved(sum(size for _, size in kept.values()), by_slot)


@contextlib.contextmanager
def _watched(slots: Mapping[str, nn.Module], running: list[str]) -> Iterator[None]:
    """Keep the name of the slot whose forward runs at the end of the list."""
    handles = []
    for name, module in slots.items():
        handles.append(module.register_forward_pre_hook(_entering(running, name)))
        handles.append(module.register_forward_hook(_leaving(running), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(running: list[str], name: str) -> Callable[..., None]:
    return lambda module, given: running.append(name)


def _leaving(running: list[str]) -> Callable[..., None]:
    def leave(module: nn.Module, given: Any, result: Any) -> None:
        running.pop()

    return leave


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    return sum({_storage(t): t.untyped_storage().nbytes() for t in tensors}.values())


def _origin(tensor: Tensor) -> Tensor:
    """The leaf that a tensor is a cast or transposed copy of; itself if it is none."""
    node: Any = tensor.grad_fn
    while node is not None and node.name().startswith(CASTS):
        node = node.next_functions[0][0]
    leaf = getattr(node, "variable", None)
    return leaf if isinstance(leaf, Tensor) else tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
