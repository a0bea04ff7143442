"""Turn pydantic's errors into sentences for the person who wrote the suite."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from normbench.registry import nearest
from normbench.suites import cost_schema, parts, schema
from normbench.suites.errors import Complaint, Location

Places = Mapping[str, type[BaseModel]]

_TRAINING: Places = {
    "": schema.AccuracySuite,
    "methods": parts.MethodEntry,
    "models": parts.ModelEntry,
    "datasets": schema.DatasetEntry,
    "training": schema.Training,
    "tune": schema.Tune,
    "tune.grid": schema.Grid,
    "claims": parts.Claim,
    "exclude": parts.Exclusion,
}
_COSTS: Places = {
    "": cost_schema.CostSuite,
    "methods": parts.MethodEntry,
    "models": cost_schema.CostModelEntry,
    "exclude": cost_schema.CostExclusion,
}
"""Which model stands at a location, indices left out, in either kind of suite."""

TASKS = ("accuracy", *cost_schema.COST_TASKS)

_KINDS = {
    "string_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}

_SENTENCES: Mapping[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "greater_than": lambda value, ctx: f"is {value:g}; expected more than {ctx['gt']:g}",
    "greater_than_equal": lambda value, ctx: f"is {value:g}; expected at least {ctx['ge']:g}",
    "less_than": lambda value, ctx: f"is {value:g}; expected less than {ctx['lt']:g}",
    "less_than_equal": lambda value, ctx: f"is {value:g}; expected at most {ctx['le']:g}",
    "string_too_short": lambda value, ctx: "is empty; expected text",
    "too_short": lambda value, ctx: "is an empty list; expected at least one entry",
    "string_pattern_mismatch": lambda value, ctx: (
        f"is {value!r}; expected lower-case letters, digits, '.', '_' and '-'"
    ),
}


def complaints(error: ValidationError, kind: type[BaseModel]) -> Iterator[Complaint]:
    """One complaint for each of pydantic's errors.

    Args:
        error: of the whole suite.
        kind: which of the suites it was taken for.
    """
    places = _COSTS if kind is cost_schema.CostSuite else _TRAINING
    details = error.errors(include_url=False)
    misspelt = {
        (at[:-1], meant)
        for at in (detail["loc"] for detail in details if detail["type"] == "extra_forbidden")
        for meant in difflib.get_close_matches(str(at[-1]), _keys(at, places), n=1)
    }
    for detail in details:
        location, wrong, value = detail["loc"], detail["type"], detail["input"]
        if wrong == "too_short" and value:
            continue  # an entry is wrong, which is reported already; the list is not empty
        if wrong == "missing":
            if (location[:-1], location[-1]) not in misspelt:
                message = f"the key {str(location[-1])!r} is missing"
                yield Complaint(location[:-1], message, about_key=True)
        elif wrong == "extra_forbidden":
            yield Complaint(location, _unknown_key(location, places), about_key=True)
        elif location == ("task",) and wrong == "literal_error":
            yield Complaint(location, _not_among(value, ", ".join(TASKS)))
        elif wrong == "foreign":
            at = (*location, detail["ctx"]["key"])
            yield Complaint(at, str(detail["msg"]), about_key=True)
        else:
            yield Complaint(location, _sentence(wrong, value, detail))


def _sentence(kind: str, value: Any, detail: Mapping[str, Any]) -> str:
    context = detail.get("ctx", {})
    if kind in _KINDS:
        return f"expected {_KINDS[kind]}, got {_describe(value, kind)}"
    if kind == "literal_error":
        return _not_among(value, context["expected"])
    if kind in _SENTENCES:
        return _SENTENCES[kind](value, context)
    return str(detail["msg"])  # our own validators write their sentences themselves


def _not_among(value: Any, expected: str) -> str:
    valid = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    got = repr(value) if isinstance(value, str) else _describe(value, "")
    return f"{got} is unknown; {nearest(str(value), valid)}"


def _unknown_key(location: Location, places: Places) -> str:
    key, place = str(location[-1]), _place(location)
    if place == "tune.grid" and key in schema.Training.model_fields:
        return "is not tuned: every variant gets the same budget and the same evaluation"
    for home, model in places.items():
        if key in model.model_fields and home in ("", "training") and place in ("", "training"):
            return f"belongs {f'under {home!r}' if home else 'at the top level'}"
    return f"unknown key; {nearest(key, _keys(location, places))}"


def _place(location: Location) -> str:
    return ".".join(part for part in location[:-1] if isinstance(part, str))


def _keys(location: Location, places: Places) -> list[str]:
    """The keys that are valid where this one stands."""
    return list(places[_place(location)].model_fields)


def _describe(value: Any, wanted: str) -> str:
    """The value in YAML's words, with what to write instead where that is plain."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, float) and wanted == "int_type" and value.is_integer():
        return f"{value}; write {int(value)}"
    if isinstance(value, str) and wanted in ("int_type", "float_type") and _is_number(value):
        return f"the text {value!r}; remove the quotes"
    if wanted == "tuple_type":
        return f"{json.dumps(value)}; write [{value}]"
    return f"the text {value!r}" if isinstance(value, str) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
