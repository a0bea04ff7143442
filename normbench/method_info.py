"""What a method declares of itself: citation, parameters, hooks; nothing that can be measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normbench.codehash import module_hash


class RegistryError(ValueError):
    """A user's mistake about methods: unknown name, unknown parameter, value out of bounds."""


class UnsupportedError(RegistryError):
    """A model that a method refuses by definition: its cells end `unsupported`, not `error`."""


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a method comes from. `arxiv` is the bare id, `1502.03167`."""

    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str = ""

    def bibtex(self, key: str) -> str:
        """A BibTeX entry under the given key."""
        fields = {
            "title": "{" + self.title + "}",
            "author": " and ".join(self.authors),
            "year": str(self.year),
        }
        kind = "misc" if self.venue.lower().startswith("arxiv") else "inproceedings"
        fields["howpublished" if kind == "misc" else "booktitle"] = self.venue
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@{kind}{{{key},\n{body}\n}}"


@dataclass(frozen=True, slots=True)
class Param:
    """What a parameter means and which values it takes.

    Bounds are inclusive unless `exclusive_minimum`. A parameter whose default is None takes None
    or a value of `kind`. One called `eps` or `affine` with default None is inherited from the
    slot by surgery, unless given.
    """

    doc: str
    kind: type = float
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    choices: tuple[Any, ...] = ()
    default: Any = None

    def check(self, label: str, value: Any) -> Any:
        """The value, converted to `kind`.

        Raises:
            RegistryError: if it is of the wrong type or out of bounds.
        """
        if value is None and self.default is None:
            return None
        value = self._convert(label, value)
        if self.choices and value not in self.choices:
            valid = ", ".join(map(repr, self.choices))
            raise RegistryError(f"{label} is {value!r}; expected one of {valid}")
        if self.kind in (int, float):
            below = self.minimum is not None and (
                value <= self.minimum if self.exclusive_minimum else value < self.minimum
            )
            above = self.maximum is not None and value > self.maximum
            if below or above or not math.isfinite(value):
                raise RegistryError(f"{label} is {value}; expected {self.bounds() or 'a number'}")
        return value

    def _convert(self, label: str, value: Any) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.kind is float and is_number:
            return float(value)
        if self.kind is int and is_number and float(value).is_integer():
            return int(value)
        if self.kind in (bool, str) and isinstance(value, self.kind):
            return value
        raise RegistryError(f"{label} is {value!r}; expected {self.kind.__name__}")

    def bounds(self) -> str:
        """The bounds in words, `> 0` or `1 to 64`; empty if there are none."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"{'>' if self.exclusive_minimum else '≥'} {self.minimum:g}"
        return "" if self.maximum is None else f"≤ {self.maximum:g}"


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a method may know of the training it is about to go through.

    Attributes:
        total_steps: training forwards that every layer will see: optimizer steps times the
            micro-batches in each.
    """

    total_steps: int


Fallback = Callable[[torch.device, torch.dtype], str]
"""Of a method with kernels of its own: why its layers would run their eager path for inputs of this
type on this device; an empty string if the kernels run."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """Everything the project knows about a method that is declared rather than measured.

    Attributes:
        builder: `(num_features, *, act=None, **params) -> nn.Module`.
        consumes_activation: the module applies `act` itself, so surgery removes the original.
        weight: weight side, `(conv) -> None | replacement`, given every convolution.
        prepare: called on the swapped model once, before training.
        observe: called on the model after training; its numbers go into the record's metrics.
        model: model side, `(model, slots, **params) -> None`, called on the swapped model with the
            slots as surgery found them (`normbench.surgery.Slot`), in the order of execution.
        policy: what the method does where its paper says nothing: 1×1 maps, N,C input, a batch of
            one, channels that do not divide, no activation at the slot.
        module: dotted name of the file that registered it.
        fallback: as `Fallback`; None if the method has no kernels of its own.
        fuses_residual: a layer takes `(x, residual=None)` and with a residual of x's shape gives
            act(norm(x) + residual), so that surgery can leave it the shortcut of a block as well.
    """

    name: str
    title: str
    family: str
    equation: str
    citation: Citation | None
    params: Mapping[str, Param]
    builder: Callable[..., nn.Module]
    consumes_activation: bool
    weight: Callable[..., nn.Module | None] | None
    prepare: Callable[[nn.Module, TrainingPlan], None] | None
    observe: Callable[[nn.Module], Mapping[str, float]] | None
    model: Callable[..., None] | None
    policy: str
    module: str
    summary: str
    fallback: Fallback | None = None
    fuses_residual: bool = False

    def why_eager(self, device: torch.device, dtype: torch.dtype) -> str:
        """`fallback`'s reason in one line; empty too where the method has no kernels. Never raises.

        An answer that cannot be had counts as a reason: what may not have run passes for nothing.
        """
        if self.fallback is None:
            return ""
        try:
            return " ".join(self.fallback(device, dtype).split())
        except Exception as error:
            return f"it is not known whether its kernels run: {type(error).__name__}: {error}"

    def code_hash(self) -> str:
        """Hash of the method's code and of the formulas it imports."""
        return module_hash(self.module)

    def to_json(self) -> dict[str, Any]:
        """The entry of `normbench methods --json`: what pages show, no code."""
        cite = self.citation
        return {
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "family": self.family,
            "equation": self.equation,
            "consumes_activation": self.consumes_activation,
            "fuses_residual": self.fuses_residual,
            "weight_side": self.weight is not None,
            "model_side": self.model is not None,
            "policy": self.policy,
            "citation": None
            if cite is None
            else {
                "title": cite.title,
                "authors": list(cite.authors),
                "year": cite.year,
                "venue": cite.venue,
                "arxiv": cite.arxiv,
                "bibtex": cite.bibtex(self.name),
            },
            "parameters": [
                {
                    "name": name,
                    "default": p.default,
                    "kind": p.kind.__name__,
                    "bounds": p.bounds(),
                    "choices": list(p.choices),
                    "doc": p.doc,
                }
                for name, p in self.params.items()
            ],
            "code_hash": self.code_hash(),
        }
