"""What surgery finds and what it did: slots, the report of a swap, its one error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FUSED = "fused"
"""`Slot.activation` of a slot whose module applies its activation itself."""


class SurgeryError(ValueError):
    """A model that cannot be operated on, with the reason: no slots, already fused ..."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a model where a normalization stands.

    Attributes:
        name: dotted path of the module, `layer1.0.bn1`.
        kind: class of the module (`BatchNormAct2d`), or the method if it is one of ours.
        num_features: channels C.
        eps: the eps the architecture gives this slot; None where it has none. A swap does not
            change it, so that swapping twice equals swapping once.
        activation: path of the activation module that follows directly, `fused` if the slot
            applies it itself, None if none follows.
        zero_init: whether gamma is all zeros, as at the end of residual branches.
        values_per_sample: how many values per channel one sample contributes, H·W for images, at
            the input watched. A batch statistic pools `batch * values_per_sample`. 0 if the slot
            did not run.
        order: rank in the order of execution.
    """

    name: str
    kind: str
    num_features: int
    eps: float | None
    activation: str | None
    zero_init: bool
    values_per_sample: int
    order: int


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a swap did, proved on a copy of the model before the model was touched.

    Attributes:
        method: catalogue name of what was put in.
        variant: canonical string with its parameters.
        model: class of the model.
        found: places where a normalization stands.
        replaced: how many of them were replaced; `found == replaced + len(left)`.
        left: name and reason of those that were not.
        paired_activations: slots followed directly by an activation.
        consumed_activations: slots whose activation the method took over, the one after the sum
            with a shortcut included.
        unconsumed: slots followed by an activation that the method would have taken over but
            could not, with the reason.
        weight_side: convolutions whose weights the method took over.
        slots: the slots as they were before.
        min_values_per_sample: smallest `Slot.values_per_sample` over the slots that ran, at
            `input_shape`; 0 if none ran.
        input_shape: shape of the input that was watched.
        eps: eps values of the new layers, sorted; empty if the method has none.
        forms: how many slots got which form, `norm`, `norm+relu`, `norm+add+relu`: what the layer
            does in one go; empty for a method that takes over no activations.
        notes: what a reader should know, one sentence each.
    """

    method: str
    variant: str
    model: str
    found: int
    replaced: int
    left: tuple[tuple[str, str], ...]
    paired_activations: int
    consumed_activations: int
    unconsumed: tuple[tuple[str, str], ...]
    weight_side: int
    slots: tuple[Slot, ...]
    min_values_per_sample: int
    input_shape: tuple[int, ...]
    eps: tuple[float, ...]
    forms: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def to_json(self, *, slots: bool = False) -> dict[str, Any]:
        """The report as plain data, ready for `json.dumps`; every slot only if `slots`."""
        data = dataclasses.asdict(self)
        if not slots:
            del data["slots"]
        return data

    def __str__(self) -> str:
        lines = [
            f"{self.variant} in {self.model}: {self.replaced} of {self.found} slots replaced, "
            f"{self.paired_activations} followed by an activation"
            + f", {self.consumed_activations} activations taken over"
            * bool(self.consumed_activations),
            f"  at least {self.min_values_per_sample} values per channel and sample "
            f"at input {'×'.join(map(str, self.input_shape))}",
        ]
        if self.eps:
            lines.append(f"  eps {', '.join(f'{value:g}' for value in self.eps)}")
        if self.forms:
            counts = (f"{count} {form}" for form, count in self.forms.items())
            lines.append(f"  forms: {', '.join(counts)}")
        if self.weight_side:
            lines.append(f"  convolutions whose weights were taken over: {self.weight_side}")
        lines += [f"  left: {name}: {reason}" for name, reason in self.left]
        lines += [f"  activation kept: {name}: {reason}" for name, reason in self.unconsumed]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)
