"""What surgery does to timm's model families: one member of each, and what became of its norms.

A family is a module of timm's model zoo (`resnet`, `convnext` ...), as timm lists them. Everything
here runs in the process that calls it; a model that hangs or eats the memory is the caller's to
stop (normbench.engine.isolation).
"""

from __future__ import annotations

import difflib
import fnmatch
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn

from normbench.surgery.kinds import take_apart, walk
from normbench.surgery.proof import EVALUATION_ONLY, NO_STATISTICS, tensors
from normbench.surgery.replace import swap
from normbench.surgery.report import SurgeryError, SwapReport

METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    "group_norm": ({}, {"groups": 8}),
    "proxy_norm": ({},),
}
"""What is swapped in: a plain layer, and one that takes over the activation after it.

With the parameters to try in turn: 32 groups of 32 channels have no variance where a map is 1×1,
as in the attention of ResNeSt, but 8 groups do.
"""

STEPS = 2
"""Optimizer steps of a probe that trains: the second sees what the first one did."""

TOYS = "test_*"
"""timm's models for its own tests: members of their families, but nobody trains them."""


@dataclass(frozen=True, slots=True)
class Member:
    """A model of a family, measured without allocating it.

    Attributes:
        name: timm's name.
        parameters: how many; None if the model could not be built on the meta device.
        norms: how many normalizations it has.
        problem: why it could not be built.
    """

    name: str
    parameters: int | None
    norms: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Swapped:
    """What one swap did to the model, or why it failed.

    Attributes:
        variant: the method, with the parameters that are not its defaults.
        instead: why the defaults were not used, on one line; empty if they were.
        error: one line; empty if the swap was proved.
        replaced: slots replaced.
        left: path and reason of the slots left.
        paired: slots followed directly by an activation.
        consumed: activations the method took over.
        unconsumed: path and reason of those it would have taken over but could not.
        input_shape: the input that ran forward and backward after the swap.
        notes: of the swap's report.
        losses: of the training steps, if any were asked for.
    """

    variant: str = ""
    instead: str = ""
    error: str = ""
    replaced: int = 0
    left: tuple[tuple[str, str], ...] = ()
    paired: int = 0
    consumed: int = 0
    unconsumed: tuple[tuple[str, str], ...] = ()
    input_shape: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()

    @property
    def evaluation_only(self) -> bool:
        """Whether the swap could not be proved in training: a statistic does not exist there."""
        return any(note.startswith(EVALUATION_ONLY) for note in self.notes)


@dataclass(frozen=True, slots=True)
class Coverage:
    """One row: a family, the member that stands for it, and what became of its norms.

    Attributes:
        family: timm's module.
        model: the member, empty if none has a norm.
        parameters: of the member.
        found: places where a normalization stands.
        kinds: how many of which class.
        swaps: by method.
        problem: one line if the member could not be probed at all.
        seconds: the probe took.
    """

    family: str
    model: str = ""
    parameters: int | None = None
    found: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    swaps: dict[str, Swapped] = field(default_factory=dict)
    problem: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """`full`, `partial` (slots are left), `failed`, or `no norm`."""
        if self.problem or any(done.error for done in self.swaps.values()):
            return "failed"
        if not self.found:
            return "no norm"
        complete = all(done.replaced == self.found for done in self.swaps.values())
        return "full" if complete else "partial"

    @property
    def reason(self) -> str:
        """Why the status is neither `full` nor `no norm`, on one line; empty if it is."""
        if self.problem:
            return self.problem
        errors = {method: done.error for method, done in self.swaps.items() if done.error}
        if len(errors) == len(self.swaps) and len(set(errors.values())) == 1:
            return next(iter(errors.values()))
        if errors:
            return "; ".join(f"{method}: {error}" for method, error in errors.items())
        left = {path: why for done in self.swaps.values() for path, why in done.left}
        return "; ".join(
            f"{count} slot{'s' * (count > 1)} left: {why}"
            for why, count in Counter(left.values()).items()
        )


class CoverageError(ValueError):
    """A pattern that no model matches."""


def families(pattern: str = "*") -> dict[str, list[str]]:
    """Names of the models that match, by family.

    Args:
        pattern: shell pattern of model names, or the name of one family. `*` is all of timm,
            without the models that others have registered with it.

    Raises:
        CoverageError: if nothing matches, with the nearest name.
    """
    modules = sorted(timm.list_modules())
    if pattern in modules:
        return {pattern: sorted(timm.list_models(module=pattern))}
    if pattern == "*":
        modules = [name for name in modules if hasattr(timm.models, name)]
    members = {name: sorted(timm.list_models(module=name)) for name in modules}
    chosen = {name: fnmatch.filter(models, pattern) for name, models in members.items()}
    if not any(chosen.values()):
        names = [*modules, *(model for models in members.values() for model in models)]
        close = difflib.get_close_matches(pattern.strip("*"), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise CoverageError(f"no model or family of timm matches {pattern!r}{hint}")
    return {name: models for name, models in chosen.items() if models}


def measure(names: Iterable[str]) -> list[Member]:
    """Parameters and norms of models, built on the meta device: no memory, no initialisation."""
    return [_measure(name) for name in names]


def _measure(name: str) -> Member:
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except Exception as error:  # whatever a model does that was not written for this device
        return Member(name, None, 0, one_line(error))
    norms = sum(_kinds(model).values())
    return Member(name, sum(parameter.numel() for parameter in model.parameters()), norms)


def choose(members: Sequence[Member]) -> Member | None:
    """The smallest member that has a norm; ties go by name.

    timm's own test models come last, and so does what could not be built on the meta device: its
    size is not known, nor whether it has norms.

    Returns:
        None if no member has a norm.
    """
    possible = [member for member in members if member.norms or member.parameters is None]
    return min(
        possible,
        key=lambda m: (
            m.parameters is None, fnmatch.fnmatch(m.name, TOYS), m.parameters or 0, m.name,
        ),
        default=None,
    )  # fmt: skip


def probe(family: str, member: Member, train: bool = False) -> Coverage:
    """Swap every method of `METHODS` into a fresh copy of the member and tell what happened.

    Args:
        family: timm's module.
        member: from `choose`.
        train: take optimizer steps after each swap, which proves forward and backward already.
    """
    began = time.monotonic()
    problem, kinds = "", {}
    swaps: dict[str, Swapped] = {}
    try:
        for method in METHODS:
            torch.manual_seed(0)
            model = timm.create_model(member.name, pretrained=False)
            kinds = dict(_kinds(model).most_common())
            if kinds:
                swaps[method] = _swapped(model, method, train)
    except Exception as error:  # a row, never the end of the table
        problem = one_line(error)
    seconds = time.monotonic() - began
    found = sum(kinds.values())
    return Coverage(
        family, member.name, member.parameters, found, kinds, swaps, problem, seconds
    )  # fmt: skip


def _kinds(model: nn.Module) -> Counter[str]:
    """Normalizations of a model by class; a shared one counts once."""
    norms = {id(module): module for _, module in walk(model) if take_apart(module) is not None}
    return Counter(type(module).__name__ for module in norms.values())


def _swapped(model: nn.Module, method: str, train: bool) -> Swapped:
    instead = ""
    *earlier, last = METHODS[method]
    try:
        for params in earlier:
            try:
                report = swap(model, method, **params)
                break
            except SurgeryError as error:  # the model is unchanged
                if not NO_STATISTICS.search(str(error)):
                    raise
                instead = one_line(error.__cause__ or error)
        else:
            report = swap(model, method, **last)
        losses = tuple(_train(model, report)) if train else ()
    except Exception as error:  # SurgeryError, or whatever training meets
        return Swapped(error=one_line(error))
    return Swapped(
        variant=report.variant,
        instead=instead,
        replaced=report.replaced,
        left=report.left,
        paired=report.paired_activations,
        consumed=report.consumed_activations,
        unconsumed=report.unconsumed,
        input_shape=report.input_shape,
        notes=report.notes,
        losses=losses,
    )


def _train(model: nn.Module, report: SwapReport) -> list[float]:
    """Losses of a few steps of plain SGD towards zero output on one random batch."""
    images = torch.randn(report.input_shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        outputs = [t for t in tensors(model.train()(images)) if t.requires_grad]
        loss = torch.stack([output.float().square().mean() for output in outputs]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    if not all(torch.isfinite(torch.tensor(losses))):
        raise ArithmeticError(f"the loss of {STEPS} training steps is not finite: {losses}")
    return losses


def one_line(error: BaseException) -> str:
    """The error's message on one line, its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
