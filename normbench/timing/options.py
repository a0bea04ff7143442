"""What a cell asks of its task, checked where it runs: some cells have passed no suite's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normbench.cells import Cell

DEFAULTS = {"mode": "train"}
"""Of options that cells may lack."""


class OptionError(ValueError):
    """A cell that a task cannot measure, with the reason."""


def check_options(
    cell: Cell, words: Mapping[str, Sequence[object]], numbers: Sequence[str]
) -> None:
    """Refuse a cell whose precision, batch size or config holds what there is not.

    Args:
        cell: any.
        words: what each option may be.
        numbers: options that are whole numbers from 1.

    Raises:
        OptionError: with the option, its value and what it may be.
    """
    given: dict[str, Any] = {**DEFAULTS, **cell.config}
    given |= {"precision": cell.precision, "batch_size": cell.batch_size}
    for name, valid in words.items():
        if given.get(name) not in valid:
            expected = " or ".join(map(str, valid))
            raise OptionError(f"{name} is {given.get(name)!r}; expected {expected}")
    for name in numbers:
        number = given.get(name)
        if type(number) is not int or number < 1:  # a bool is an int too
            raise OptionError(f"{name} is {number!r}; expected a whole number from 1")
