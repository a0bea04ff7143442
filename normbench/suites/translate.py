"""Turn pydantic's errors into sentences for the person who wrote the suite."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from normbench.registry import nearest
from normbench.suites import schema
from normbench.suites.errors import Complaint, Location

_MODELS: Mapping[str, type[BaseModel]] = {
    "": schema.Suite,
    "methods": schema.MethodEntry,
    "models": schema.ModelEntry,
    "datasets": schema.DatasetEntry,
    "training": schema.Training,
    "tune": schema.Tune,
    "tune.grid": schema.Grid,
    "claims": schema.Claim,
    "exclude": schema.Exclusion,
}
"""Which model stands at a location, indices left out."""

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


def complaints(error: ValidationError) -> Iterator[Complaint]:
    """One complaint for each of pydantic's errors."""
    details = error.errors(include_url=False)
    misspelt = {
        (detail["loc"][:-1], meant)
        for detail in details
        if detail["type"] == "extra_forbidden"
        for meant in difflib.get_close_matches(str(detail["loc"][-1]), _keys(detail["loc"]), n=1)
    }
    for detail in details:
        location, kind, value = detail["loc"], detail["type"], detail["input"]
        if kind == "too_short" and value:
            continue  # an entry is wrong, which is reported already; the list is not empty
        if kind == "missing":
            if (location[:-1], location[-1]) not in misspelt:
                message = f"the key {str(location[-1])!r} is missing"
                yield Complaint(location[:-1], message, about_key=True)
        elif kind == "extra_forbidden":
            yield Complaint(location, _unknown_key(location), about_key=True)
        else:
            yield Complaint(location, _sentence(kind, value, detail))


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


def _unknown_key(location: Location) -> str:
    key, place = str(location[-1]), _place(location)
    if place == "tune.grid" and key in schema.Training.model_fields:
        return "is not tuned: every variant gets the same budget and the same evaluation"
    for home, model in _MODELS.items():
        if key in model.model_fields and home in ("", "training") and place in ("", "training"):
            return f"belongs {f'under {home!r}' if home else 'at the top level'}"
    return f"unknown key; {nearest(key, _keys(location))}"


def _place(location: Location) -> str:
    return ".".join(part for part in location[:-1] if isinstance(part, str))


def _keys(location: Location) -> list[str]:
    """The keys that are valid where this one stands."""
    return list(_MODELS[_place(location)].model_fields)


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
