"""Watch one forward pass: which activation follows which normalization, and who else looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normbench.surgery.kinds import is_activation
from normbench.surgery.watcher import (
    ACTIVATION,
    ADDITIONS,
    FUNCTIONAL,
    Call,
    Watcher,
    hook_other,
    hook_reader,
    hook_slot,
)

User = tuple[str, bool]
"""A slot that calls an activation, and whether on its sum with a shortcut; `OUTSIDE` is no slot."""

OUTSIDE: User = ("", False)


@dataclass(frozen=True, slots=True)
class Follower:
    """The activation that follows a slot, directly or after the sum with a shortcut.

    Attributes:
        activation: path of the module, or None.
        obstacle: why it cannot be moved into the slot; empty if it can, or if none follows.
        users: everyone who calls it.
    """

    activation: str | None = None
    obstacle: str = ""
    users: frozenset[User] = frozenset()

    def hindered(self, allowed: Iterable[User]) -> str:
        """What keeps it from moving if all of the `allowed` users would do without it."""
        if self.obstacle or self.users <= frozenset(allowed):
            return self.obstacle
        return f"activation {self.activation} serves other places too"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen of one slot.

    Attributes:
        order: rank of its first call; slots that did not run come last.
        values_per_sample: values per channel and sample, the smallest over its calls; 0 if none.
        direct: the activation that follows it directly.
        after_sum: the activation that follows the sum of its output and a shortcut.
    """

    order: int
    values_per_sample: int = 0
    direct: Follower = Follower()
    after_sum: Follower = Follower()


def watch(
    model: nn.Module,
    slots: Mapping[str, tuple[nn.Module, int]],
    outside: Iterable[tuple[str, nn.Module]],
    example: torch.Tensor,
) -> dict[str, Sighting]:
    """Run the model once in evaluation mode without gradients and watch its slots.

    The model's training flags are not restored: give a copy.

    Args:
        model: what to run.
        slots: path to module and number of channels.
        outside: path and module of everything that is not inside a slot.
        example: input, batch first.
    """
    watcher = Watcher(len(example))
    handles = []
    for name, (module, channels) in slots.items():
        handles += hook_slot(watcher, name, module, channels)
    known = {id(module) for module, _ in slots.values()}
    for name, module in outside:
        if id(module) not in known and not isinstance(module, nn.Identity):
            known.add(id(module))
            handles += hook_other(watcher, name, module)
    return _sightings(model, watcher, handles, slots, example)


def watch_feeders(
    model: nn.Module,
    feeders: Mapping[str, tuple[nn.Module, int]],
    norms: Mapping[str, nn.Module],
    outside: Iterable[tuple[str, nn.Module]],
    example: torch.Tensor,
) -> dict[str, Sighting]:
    """Run the model once in evaluation mode and watch which normalization follows a convolution.

    The model's training flags are not restored: give a copy.

    Args:
        model: what to run.
        feeders: path to convolution or linear layer and number of its output channels.
        norms: path to module of every normalization.
        outside: path and module of everything that is not inside a normalization.
        example: input, batch first.

    Returns:
        By feeder; the direct `activation` of a sighting is the path of the normalization that
        follows.
    """
    watcher = Watcher(len(example))
    handles = []
    for name, (module, channels) in feeders.items():
        handles += hook_slot(watcher, name, module, channels)
    known = {id(module) for module, _ in feeders.values()}
    for name, module in norms.items():
        known.add(id(module))
        handles += hook_reader(watcher, name, module)
    for name, module in outside:
        if id(module) not in known and not is_activation(module):
            known.add(id(module))
            handles += hook_other(watcher, name, module)
    return _sightings(model, watcher, handles, feeders, example)


def _sightings(
    model: nn.Module,
    watcher: Watcher,
    handles: list[Any],
    slots: Iterable[str],
    example: torch.Tensor,
) -> dict[str, Sighting]:
    try:
        with torch.no_grad(), watcher:
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    ranks = dict.fromkeys([*(call.slot for call in watcher.calls), *slots])
    return {name: _sighting(name, rank, watcher) for rank, name in enumerate(ranks)}


def _sighting(name: str, rank: int, watcher: Watcher) -> Sighting:
    calls = [call for call in watcher.calls if call.slot == name]
    if not calls:
        return Sighting(rank)
    values = min(call.values for call in calls)
    callers = watcher.callers
    return Sighting(rank, values, _follower(calls, callers), _after_sum(calls, callers))


def _follower(calls: list[Call], callers: Mapping[str, list[Call | None]]) -> Follower:
    """The activation that follows every one of these calls, and what keeps it from moving."""
    readers = [[reader for reader in call.readers if reader.kind == ACTIVATION] for call in calls]
    names = sorted({reader.name for of_call in readers for reader in of_call})
    others = {str(r) for call in calls for r in call.readers if r.kind != ACTIVATION}
    if not names:
        functional = sorted(other for other in others if other.startswith(FUNCTIONAL))
        return Follower(None, f"{' and '.join(functional)} cannot be removed" if functional else "")
    if len(names) > 1:
        some = ", ".join(names[:2]) + " …" * (len(names) > 2)
        return Follower(None, f"{len(names)} activations follow it: {some}")
    (name,) = names
    if not all(readers):
        return Follower(None, f"activation {name} follows some of its outputs only")
    if others:
        return Follower(name, f"its output also goes to {' and '.join(sorted(others))}")
    return Follower(name, "", frozenset(map(_user, callers[name])))


def _after_sum(calls: list[Call], callers: Mapping[str, list[Call | None]]) -> Follower:
    """The same for the sums with a shortcut that these calls go into, and for the way there."""
    sums = [call.sum for call in calls if call.sum is not None]
    if len(sums) < len(calls):
        return Follower()
    found = _follower(sums, callers)
    if found.activation is None:
        return found
    if hurdle := next((call.hurdle for call in sums if call.hurdle), ""):
        return Follower(found.activation, f"{hurdle} stands between norm and sum")
    if others := {reader for call in calls for reader in _besides_the_sum(call)}:
        return Follower(found.activation, f"its output also goes to {' and '.join(sorted(others))}")
    return found


def _besides_the_sum(call: Call) -> list[str]:
    additions = [reader for reader in call.readers if reader.name in ADDITIONS]
    return [str(reader) for reader in call.readers if reader not in additions[:1]]


def _user(call: Call | None) -> User:
    if call is None or (call.origin is not None and not call.after_sum):
        return OUTSIDE
    return call.slot, call.after_sum
