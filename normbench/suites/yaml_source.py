"""Read a suite's YAML into plain data that remembers where everything stood.

Scalars follow YAML 1.2's core rules, so that `1e-3` is a number. What YAML 1.1 readers see
otherwise (`on`, `yes`, `010`, `1_000`) is refused with a suggestion instead of guessed, and so is
what a table of experiments never needs: aliases, tags, several documents, duplicate keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from normbench.suites.errors import Complaint, Location, Problem, SuiteError, key_path

_TAG = "tag:yaml.org,2002:"
_MAX_DIGITS = 18  # more is a slip of the keyboard, and would not fit a 64-bit integer

# Words and numbers that YAML 1.1 and 1.2 read differently, with what to write instead.
_TRAPS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"yes|on", re.I), "write true, or quote it: \"{0}\""),
    (re.compile(r"no|off", re.I), "write false, or quote it: \"{0}\""),
    (re.compile(r"[-+]?0[0-9]+"), "write it without the leading zero, or quote it: \"{0}\""),
    (re.compile(r"[-+]?[0-9][0-9.]*_[0-9_.]*"), "write it without the underscore"),
    (re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+"), "quote it: \"{0}\""),
)  # fmt: skip


class _Unsupported(yaml.MarkedYAMLError):
    """Valid YAML that a suite does not need."""

    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(problem=f"a suite has no {what}", problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's reader with YAML 1.2's core scalars, and without aliases and tags."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own way to set them

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Unsupported(f"aliases (*{event.anchor}); write the value out", event.start_mark)
        if tag := getattr(event, "tag", None):
            raise _Unsupported(f"tags ({tag.replace(_TAG, '!!')}); remove it", event.start_mark)
        return super().compose_node(parent, index)


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), _first)


@dataclass(slots=True)
class Source:
    """A file's content as plain data, with the place of every key and value.

    Attributes:
        path: as the user wrote it.
        data: dictionaries, lists, strings, numbers, booleans, None.
        complaints: what the YAML itself has wrong; `data` is still usable.
    """

    path: str
    data: Any = None
    complaints: list[Complaint] = field(default_factory=list)
    _keys: dict[Location, yaml.Mark] = field(default_factory=dict)
    _values: dict[Location, yaml.Mark] = field(default_factory=dict)

    def problem(self, complaint: Complaint) -> Problem:
        """The complaint with its line and column, its message led by the key's path."""
        location = complaint.location
        while location not in self._values:  # a shorthand's key, which nobody wrote
            location = location[:-1]
        marks = self._keys if complaint.about_key and location in self._keys else self._values
        where = key_path(location)
        text = f"{where}: {complaint.message}" if where else complaint.message
        return Problem(marks[location].line + 1, marks[location].column + 1, text)

    def _construct(self, node: yaml.Node, at: Location) -> Any:
        self._values[at] = node.start_mark
        if isinstance(node, yaml.MappingNode):
            return {key: self._construct(value, (*at, key)) for key, value in self._pairs(node, at)}
        if isinstance(node, yaml.SequenceNode):
            return [self._construct(item, (*at, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # the only kind left
        value, complaint = _scalar(node)
        if complaint:
            self.complaints.append(Complaint(at, complaint))
        return value

    def _pairs(self, node: yaml.MappingNode, at: Location) -> Iterator[tuple[str, yaml.Node]]:
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            here = (*at, key)
            if key_node.tag != _TAG + "str":
                problem = "expected text as a key; quote it"
            elif here in self._keys:
                problem = f"duplicate key; it stands in line {self._keys[here].line + 1} already"
            else:
                problem = _trap(key_node) or ""
            self._keys[here] = key_node.start_mark
            if problem:
                self._values.setdefault(here, key_node.start_mark)
                self.complaints.append(Complaint(here, problem, about_key=True))
            else:
                yield key, value


def read(path: str | Path) -> Source:
    """Read a YAML file.

    Raises:
        SuiteError: if the file cannot be read or is not YAML. Smaller faults (duplicate keys,
            ambiguous words) are left in the source's `complaints`, so that they can be reported
            together with what the schema finds.
    """
    source = Source(str(path))
    text = _text(Path(path))
    try:
        node = _Loader(text).get_single_node()
        if node is None:
            raise SuiteError(str(path), [Problem(0, 0, "the file is empty; see docs/suites.md")])
        source.data = source._construct(node, ())
    except yaml.MarkedYAMLError as error:
        raise SuiteError(str(path), [_syntax_problem(error)]) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        message = "this character is not allowed in YAML"
        raise SuiteError(str(path), [Problem(line, column, message)]) from error
    except RecursionError as error:
        raise SuiteError(str(path), [Problem(0, 0, "is nested too deeply")]) from error
    return source


def _text(path: Path) -> str:
    problem = ""
    if path.is_dir():
        inside = sorted(str(p) for p in path.glob("*.y*ml"))
        problem = "is a folder; expected a YAML file" + (f": {', '.join(inside)}" if inside else "")
    elif not path.exists():
        problem = "no such file" + _nearest_file(path)
    else:
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            problem = "is not UTF-8 text; expected a YAML file"
    raise SuiteError(str(path), [Problem(0, 0, problem)])


def _nearest_file(path: Path) -> str:
    """A YAML file of a similar name, here or in the folder `suites`."""
    folders = (path.parent, path.parent / "suites")
    files = [p for folder in folders for p in folder.glob("[!.]*.y*ml")]
    close = difflib.get_close_matches(path.stem, [p.stem for p in files], n=1)
    near = next((p for p in files if p.stem in close), None)
    return f"; did you mean '{near}'?" if near else ""


def _syntax_problem(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    if "found character '\\t'" in said:
        said = "a tab where only spaces are allowed"
    if error.context_mark and mark and error.context_mark.line != mark.line:
        said += f" (it begins in line {error.context_mark.line + 1})"
    message = said if isinstance(error, _Unsupported) else f"not valid YAML: {said}"
    return Problem(mark.line + 1, mark.column + 1, message) if mark else Problem(0, 0, message)


def _trap(node: yaml.ScalarNode) -> str | None:
    if node.style is None:  # unquoted
        for pattern, advice in _TRAPS:
            if pattern.fullmatch(node.value):
                advice = advice.format(node.value)
                return f"{node.value} means different things to different YAML readers; {advice}"
    return None


def _scalar(node: yaml.ScalarNode) -> tuple[Any, str | None]:
    """The value, and what is wrong with it, if anything."""
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    if trap := _trap(node):
        return text, trap
    if kind == "null":
        return None, None
    if kind == "bool":
        return text.lower() == "true", None
    if kind == "int":
        if len(text) > _MAX_DIGITS:
            return 0, f"{text[:20]}… has more than {_MAX_DIGITS} digits"
        return int(text), None
    if kind == "float":
        value = 0.0 if "n" in text.lower() else float(text)
        finite = "n" not in text.lower() and value - value == 0.0
        return value, None if finite else f"{text} is not a finite number"
    return text, None
