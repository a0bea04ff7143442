"""What a probe is, what it answers, and how one that crashes becomes an answer too."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from normbench.capabilities.subject import Subject

Value = bool | float | None
Measure = Callable[[Subject], "Answer"]

ALONE = "_without_activation"
"""Ends the name of an entry that was measured on the layer without an activation."""


class NotMeasured(Exception):
    """A probe that cannot be made here: a package is missing, a tool does not work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found.

    Attributes:
        value: yes, no or a number; None if the probe did not get that far.
        reason: why it is no, or what was seen. Where there is no value its first word says what
            happened, before a colon: `skipped`, `missing`, `crashed` or `undefined`.
    """

    value: Value
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record's `slots`."""
        return {"value": self.value, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that is put to every method.

    Attributes:
        name: the entry's name in records.
        heading: a few words for a table's column.
        description: what is measured, in one line.
        details: conditions and thresholds, where one line does not hold them.
        unit: of a number; empty for yes or no.
        slow: takes seconds, and is left out with --fast.
        alone: when it is asked once more of the layer without an activation: `never`, of methods
            that `own` their activation, or `always`.
        measure: the function.
    """

    name: str
    heading: str
    description: str
    details: str
    unit: str
    slow: bool
    alone: Literal["never", "own", "always"]
    measure: Measure


def probe(
    heading: str,
    *,
    unit: str = "",
    slow: bool = False,
    alone: Literal["never", "own", "always"] = "never",
) -> Callable[[Measure], Probe]:
    """Make a probe of a function: its name is the entry's, its docstring what pages show.

    Args:
        heading: a few words for a table's column.
        unit: of a number; empty for yes or no.
        slow: takes seconds.
        alone: when it is asked of the layer without an activation too.
    """

    def make(function: Measure) -> Probe:
        name = getattr(function, "__name__", "")
        summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
        details = " ".join(rest.split())
        return Probe(name, heading, summary, details, unit, slow, alone, function)

    return make


def ask(asked: Probe, subject: Subject) -> dict[str, Answer]:
    """The probe's entries: one, or two where it also looks at the layer without activation."""
    entries = {asked.name: _answer(asked, subject)}
    if asked.alone == "always" or (asked.alone == "own" and subject.owns_activation):
        entries[asked.name + ALONE] = _answer(asked, subject.without_activation())
    return entries


def _answer(asked: Probe, subject: Subject) -> Answer:
    if asked.slow and subject.fast:
        return Answer(None, "skipped: takes seconds, left out by --fast")
    try:
        with subject.seeded():
            answer = asked.measure(subject)
    except NotMeasured as reason:
        return Answer(None, str(reason))
    except Exception as error:
        answer = Answer(None, f"crashed: {sentence(error)} ({_place(error)})")
        traceback.clear_frames(error.__traceback__)  # their tensors are not needed any more
    if isinstance(answer.value, float) and not math.isfinite(answer.value):
        return Answer(None, f"undefined: the result is {answer.value}")
    return answer


def sentence(error: BaseException, limit: int = 200) -> str:
    """An exception in one line of at most `limit` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno} in {last.name}"


def numbers(entries: Mapping[str, Answer]) -> dict[str, float]:
    """The entries as metrics: yes is 1, no is 0; those without a value are left out."""
    return {name: float(a.value) for name, a in entries.items() if a.value is not None}
