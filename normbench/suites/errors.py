"""What is wrong with a suite file, and where, written for the person who wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Location = tuple[str | int, ...]
"""Path of a value inside a suite: `("methods", 1, "params", "rmax")`."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A sentence about the value at a location, or about its key."""

    location: Location
    message: str
    about_key: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file. Line and column count from 1; 0 where there is no line."""

    line: int
    column: int
    message: str

    def at(self, path: str) -> str:
        """`file:line:column: message`, the form that editors and terminals make clickable."""
        place = f":{self.line}:{self.column}" if self.line else ""
        return f"{path}{place}: {self.message}"


class SuiteError(ValueError):
    """A suite that cannot be run; carries everything wrong with it at once.

    Attributes:
        path: the file, or the suite's name where there is none.
        problems: in the order of the file.
    """

    def __init__(self, path: str, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.column, p.message)))
        lines = [problem.at(path) for problem in self.problems]
        if len(lines) > 1:
            lines.insert(0, f"{path} has {len(lines)} problems")
        super().__init__("\n".join(lines))


def key_path(location: Location) -> str:
    """A location as a person writes it: `methods[1].params.rmax`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")
