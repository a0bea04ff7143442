"""Which activations a method takes over, where it adds the shortcut as well, and the way back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from normbench.registry import MethodInfo
from normbench.surgery.deferred import Waiting, release
from normbench.surgery.kinds import Home, Parts, take_apart, walk
from normbench.surgery.places import places, put
from normbench.surgery.report import FUSED, Slot, SurgeryError
from normbench.surgery.slots import Survey
from normbench.surgery.watch import Follower, User


@dataclass(frozen=True, slots=True)
class Taking:
    """An activation that the method takes over at one slot.

    Attributes:
        act: the activation.
        after_sum: whether it follows the sum with a shortcut, which the layer then adds itself.
        home: its old place; None where the slot's own module applied it.
    """

    act: nn.Module
    after_sum: bool = False
    home: Home | None = None

    @property
    def form(self) -> str:
        """`norm+relu`, `norm+add+relu`."""
        return f"norm+{'add+' * self.after_sum}{type(self.act).__name__.lower()}"


@dataclass(slots=True)
class Takeover:
    """What a method takes over in a model.

    Attributes:
        takings: by slot.
        kept: by slot, why an activation that follows directly stays.
        apart: why norm, sum and activation stay apart, and at how many slots.
    """

    takings: dict[str, Taking] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    apart: Counter[str] = field(default_factory=Counter)


def take(model: nn.Module, found: Survey, info: MethodInfo, *, fuse: bool) -> Takeover:
    """Decide what the method takes over, and empty the places of those activations.

    Args:
        model: the surveyed model or its copy, its slots not yet replaced.
        found: the survey.
        info: the method.
        fuse: whether it may add shortcuts, if it can.
    """
    done = Takeover()
    if not info.consumes_activation:
        return done
    fuse = fuse and info.fuses_residual
    wanted: dict[User, Follower] = {}
    for slot in found.slots:
        parts = take_apart(model.get_submodule(slot.name))
        assert isinstance(parts, Parts)
        if slot.activation == FUSED:
            assert parts.act is not None
            done.takings[slot.name] = Taking(parts.act)
        else:
            wanted |= _wanted(model, slot, parts, found, fuse, done)
    homes: dict[str | None, Home] = {}
    for (name, after_sum), follower in wanted.items():
        if obstacle := follower.hindered(wanted if fuse else {(name, after_sum)}):
            _stays(done, name, after_sum, obstacle)
        else:
            home = homes.get(follower.activation) or _empty(model, str(follower.activation))
            homes[follower.activation] = home
            done.takings[name] = Taking(home.act, after_sum, home)
    return done


def _empty(model: nn.Module, path: str) -> Home:
    act = model.get_submodule(path)
    home = Home(nn.Identity(), act, getattr(act, "inplace", False) is True)
    put(model, places(model, home.act), home.place)
    return home


def _wanted(
    model: nn.Module, slot: Slot, parts: Parts, found: Survey, fuse: bool, done: Takeover
) -> dict[User, Follower]:
    """The activations at one slot that can be moved, if their other users allow it."""
    wanted: dict[User, Follower] = {}
    sighting = found.sightings[slot.name]
    followers = [(sighting.direct, False), (sighting.after_sum, True)]
    for follower, after_sum in followers[: 1 + fuse]:
        if obstacle := _obstacle(model, parts, follower, after_sum):
            _stays(done, slot.name, after_sum, obstacle)
        elif follower.activation is not None:
            wanted[slot.name, after_sum] = follower
    return wanted


def _obstacle(model: nn.Module, parts: Parts, follower: Follower, after_sum: bool) -> str:
    if follower.obstacle or follower.activation is None:
        return follower.obstacle
    if len(places(model, model.get_submodule(follower.activation))) > 1:
        return f"activation {follower.activation} stands at several places"
    if after_sum and parts.drop is not None:
        return f"{type(parts.drop).__name__} stands between norm and sum"
    return "its channels are last" if after_sum and parts.channels_last else ""


def _stays(done: Takeover, name: str, after_sum: bool, obstacle: str) -> None:
    if after_sum:
        done.apart[obstacle] += 1
    else:
        done.kept[name] = obstacle


def give_back(model: nn.Module) -> None:
    """Put activations that an earlier swap took over back to where they stood.

    The layers that held them have an identity instead, until they are replaced.

    Raises:
        SurgeryError: if a layer adds a shortcut and the place of its activation is gone.
    """
    for name, module in walk(model):
        parts = take_apart(module)
        if not isinstance(parts, Parts) or not isinstance(parts.home, Home):
            continue
        home = parts.home
        if not home.returned:
            paths = places(model, home.place)
            if not paths and isinstance(parts.core, Waiting):
                raise SurgeryError(
                    f"{name} adds a shortcut and applies an activation whose place in the model "
                    "is gone: build the model anew and swap that"
                )
            put(model, paths, home.act)
            home.returned = bool(paths)
            if home.inplace:
                home.act.inplace = True  # type: ignore[assignment]
        release(parts.core)
        held = [key for key, child in parts.core.named_children() if child is home.act]
        put(parts.core, held if home.returned else [], nn.Identity())
