"""What a suite names must exist: methods and their parameters, models, datasets.

Works on the plain data rather than on the validated suite, entry by entry, so that a misspelt
method is reported together with a misspelt key elsewhere.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from normbench.cells import canonical_json
from normbench.registry import (
    RegistryError,
    build,
    get,
    nearest,
    parse_variant,
    resolve_params,
    variant,
)
from normbench.suites.cost_schema import COST_TASKS, CostModelEntry
from normbench.suites.errors import Complaint, Location
from normbench.suites.parts import MethodEntry, ModelEntry
from normbench.suites.schema import DatasetEntry, Training, Tune

_SET_BY_THE_TASK = ("pretrained", "num_classes", "in_chans")
"""Arguments of `timm.create_model` that follow from the dataset and the protocol."""

P = TypeVar("P", bound=BaseModel)
Lines = Callable[[Location], int]


def complaints(data: Mapping[str, Any], line_of: Lines) -> Iterator[Complaint]:
    """Everything that a suite names and that does not exist, and entries that repeat another.

    Args:
        data: the suite as plain data, possibly malformed: malformed entries are passed over.
        line_of: line of a location, for sentences that point at a second place.
    """
    yield from _methods(data, line_of)
    yield from _models(data, line_of)
    yield from _datasets(data, line_of)
    yield from _trials(data)
    for index, entry in enumerate(_items(data, "exclude")):
        names = entry.get("method", []) if isinstance(entry, Mapping) else []
        for name in names if isinstance(names, list) else [names]:
            if isinstance(name, str):
                at = ("exclude", index, "method")
                yield from (Complaint(at, c.message) for c in _variant(at, name, {}))


def resolved(entry: MethodEntry) -> tuple[str, dict[str, Any]]:
    """Catalogue name and given parameters of an entry, whichever way it was written.

    Raises:
        RegistryError: if the string is not `name(key=value)`, or a parameter is given twice.
    """
    name, params = parse_variant(entry.name) if "(" in entry.name else (entry.name, {})
    if twice := sorted(params.keys() & entry.params):
        raise RegistryError(f"parameter {twice[0]!r} is given twice, in the name and in params")
    return name, {**params, **entry.params}


def _trials(data: Mapping[str, Any]) -> Iterator[Complaint]:
    """Each point of the tuning grid is a training section, and must be one that is accepted."""
    training, tune = data.get("training"), data.get("tune")
    try:
        Training.model_validate(training)
        grid = Tune.model_validate(tune).grid.model_dump(exclude_none=True)
    except ValidationError:  # reported by the schema; or there is no tuning
        return
    seen: set[str] = set()
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        try:
            Training.model_validate({**(training or {}), **point})
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                if detail["msg"] not in seen:
                    seen.add(detail["msg"])
                    text = f"in the trial {canonical_json(point)}, {detail['msg']}"
                    yield Complaint(("tune", "grid"), text, about_key=True)


def _methods(data: Mapping[str, Any], line_of: Lines) -> Iterator[Complaint]:
    seen: dict[str, Location] = {}
    for at, entry in _entries(data, "methods", "name", MethodEntry):
        wrong = list(_variant(at, entry.name, entry.params))
        yield from wrong
        if not wrong:
            name, params = resolved(entry)
            key = canonical_json([name, resolve_params(name, params)])
            yield from _repeats(seen, key, at, f"the variant {variant(name, params)}", line_of)


def _variant(at: Location, text: str, given: Mapping[str, Any]) -> Iterator[Complaint]:
    """What is wrong with a method and its parameters, each parameter on its own."""
    try:
        name, params = resolved(MethodEntry(name=text, params=dict(given)))
        get(name)
    except RegistryError as error:
        yield Complaint((*at, "name"), str(error))
        return
    wrong = False
    for key, value in params.items():
        where = (*at, "params", key) if key in given else at
        try:
            canonical_json(value)
            resolve_params(name, {key: value})
        except RegistryError as error:
            wrong = True
            yield Complaint(where, str(error), about_key=key not in get(name).params)
        except ValueError:  # JSON has no infinity, and a cell is JSON
            wrong = True
            yield Complaint(where, f"{key} is not a finite number")
    if not wrong:
        yield from _builds(at, name, params)


def _builds(at: Location, name: str, params: Mapping[str, Any]) -> Iterator[Complaint]:
    """What the method says of its parameters taken together: build one layer and see."""
    try:
        build(name, 64, **params)
    except ValueError as error:
        yield Complaint(at, str(error))


def _models(data: Mapping[str, Any], line_of: Lines) -> Iterator[Complaint]:
    import timm

    importlib.import_module("normbench.networks")  # registers our small networks into timm
    seen: dict[str, Location] = {}
    kind = CostModelEntry if data.get("task") in COST_TASKS else ModelEntry
    for at, entry in _entries(data, "models", "name", kind):
        if not timm.is_model(entry.name):
            names = nearest(entry.name, timm.list_models())
            known = names if names.startswith("did") else "see timm.list_models()"
            yield Complaint((*at, "name"), f"unknown model {entry.name!r}; {known}")
        for key in _SET_BY_THE_TASK:
            if key in entry.args:
                message = "is set by the task, the same for every cell; remove it"
                yield Complaint((*at, "args", key), message, about_key=True)
        size = entry.image_size if isinstance(entry, CostModelEntry) else None
        key = canonical_json([entry.name, entry.args, size])
        yield from _repeats(seen, key, at, f"the model {entry.name}", line_of)


def _datasets(data: Mapping[str, Any], line_of: Lines) -> Iterator[Complaint]:
    seen: dict[str, Location] = {}
    for at, entry in _entries(data, "datasets", "source", DatasetEntry):
        yield from _source(at, entry)
        key = canonical_json([entry.source, entry.options()])
        yield from _repeats(seen, key, at, f"the dataset {entry.source}", line_of)


def _source(at: Location, entry: DatasetEntry) -> list[Complaint]:
    """What is wrong with the source, else with an option, else with the options together."""
    from normbench.data import DataError, check_source

    options = entry.options()

    def refused(where: Location, given: Mapping[str, Any]) -> list[Complaint]:
        try:
            check_source(entry.source, given)
        except DataError as error:
            return [Complaint(where, str(error), about_key=bool(given))]
        return []

    found = refused((*at, "source"), {})
    if not found:
        for key, value in options.items():
            found += refused((*at, key), {key: value})
    return found or refused(at, options)


def _repeats(
    seen: dict[str, Location], key: str, at: Location, what: str, line_of: Lines
) -> Iterator[Complaint]:
    if key in seen:
        yield Complaint(at, f"{what} stands in line {line_of(seen[key])} already")
    seen.setdefault(key, at)


def _entries(
    data: Mapping[str, Any], section: str, shorthand: str, model: type[P]
) -> Iterator[tuple[Location, P]]:
    for index, item in enumerate(_items(data, section)):
        try:
            entry = model.model_validate({shorthand: item} if isinstance(item, str) else item)
        except ValidationError:  # reported by the schema
            continue
        yield (section, index), entry


def _items(data: Mapping[str, Any], section: str) -> list[Any]:
    items = data.get(section)
    return items if isinstance(items, list) else []
