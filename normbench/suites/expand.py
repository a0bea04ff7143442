"""From a suite to its cells: the whole grid, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from normbench.cells import Cell, canonical_json
from normbench.suites.cost_schema import CostExclusion, CostSuite
from normbench.suites.errors import Problem, SuiteError
from normbench.suites.parts import Exclusion, ModelEntry, Point
from normbench.suites.schema import Suite


def expand(suite: Suite) -> list[Cell]:
    """All cells of a suite.

    The order is seed, model, data set (or what is varied in its place), batch size, method, each
    as the file has it: the methods of
    one setting run next to each other, and one whole picture is there after the first seed.

    Raises:
        SuiteError: if no cell is left, or two entries stand for the same cell.
        RegistryError: for an unknown method or parameter, or a value out of bounds; suites read
            by `load_suite` have none.
    """
    cells = [cell for cell in _grid(suite) if not excluding(suite, cell)]
    seen: set[str] = set()
    for cell in cells:
        key = canonical_json(cell.to_json())
        if key in seen:
            text = f"the cell {cell.variant}, {cell.model}, {cell.dataset} stands there twice"
            raise SuiteError(suite.name, [Problem(0, 0, text)])
        seen.add(key)
    if not cells:
        text = "expands to zero cells: every one is excluded"
        raise SuiteError(suite.name, [Problem(0, 0, text)])
    return cells


def excluding(suite: Suite, cell: Cell) -> list[int]:
    """Indices of the `exclude` entries that match a cell."""
    entries: Sequence[Exclusion | CostExclusion] = suite.exclude
    return [i for i, entry in enumerate(entries) if _matches(entry, cell)]


def idle_exclusions(suite: Suite) -> list[int]:
    """Indices of the `exclude` entries that match no cell: a slip, most likely."""
    matching = {i for cell in _grid(suite) for i in excluding(suite, cell)}
    return [i for i in range(len(suite.exclude)) if i not in matching]


def _grid(suite: Suite) -> Iterator[Cell]:
    methods = list(_methods(suite))
    for seed in suite.seeds:
        for model, point in _points(suite):
            for name, params, label in methods:
                yield Cell(
                    suite.name, suite.task, name, params, label, model.name, model.args,
                    point.dataset, point.dataset_args, point.batch_size, seed, point.precision,
                    point.config,
                )  # fmt: skip


def _points(suite: Suite) -> Iterator[tuple[ModelEntry, Point]]:
    if isinstance(suite, CostSuite):
        for costed in suite.models:
            yield from ((costed, point) for point in suite.points(costed))
    else:
        for model in suite.models:
            yield from ((model, point) for point in suite.points(model))


def _methods(suite: Suite) -> Iterator[tuple[str, dict[str, Any], str]]:
    from normbench.registry import resolve_params, variant  # imports torch
    from normbench.suites.checks import resolved

    for entry in suite.methods:
        name, given = resolved(entry)
        yield name, resolve_params(name, given), variant(name, given)


def _matches(entry: Exclusion | CostExclusion, cell: Cell) -> bool:
    wanted = entry.model_dump(exclude_none=True)
    methods = wanted.pop("method", None)
    values = cell.to_json() | dict(cell.config)
    return all(values[key] in chosen for key, chosen in wanted.items()) and (
        methods is None or any(_is_variant(cell, text) for text in methods)
    )


def _is_variant(cell: Cell, text: str) -> bool:
    from normbench.registry import parse_variant, variant

    return cell.variant == variant(*parse_variant(text)) if "(" in text else cell.method == text
