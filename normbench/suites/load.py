"""From a file to a suite, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from normbench.suites.cost_schema import COST_TASKS, CostSuite
from normbench.suites.errors import Complaint, Problem, SuiteError
from normbench.suites.expand import expand, idle_exclusions
from normbench.suites.schema import AccuracySuite, Suite
from normbench.suites.yaml_source import Source, read


def load_suite(path: str | Path) -> Suite:
    """Read and check a suite file.

    Raises:
        SuiteError: with everything that is wrong, each with line, column, the key's path, what
            was expected and the nearest valid name.
    """
    source = read(path)
    if not isinstance(source.data, dict):
        text = "expected a mapping with the keys name, question, task, methods ...; see docs/suites"
        raise SuiteError(str(path), [source.problem(Complaint((), text))])
    from normbench.suites import checks, translate  # import torch and timm

    found = list(source.complaints)
    suite: Suite | None = None
    kind = CostSuite if source.data.get("task") in COST_TASKS else AccuracySuite
    try:
        suite = kind.model_validate(source.data)
    except ValidationError as error:
        found += translate.complaints(error, kind)
    found += checks.complaints(source.data, lambda at: source.problem(Complaint(at, "")).line)
    if suite is not None and not found:
        found += _of_the_grid(suite)
    if suite is None or found:
        raise SuiteError(str(path), _problems(source, found))
    return suite


def _of_the_grid(suite: Suite) -> Iterator[Complaint]:
    ids: list[str] = []
    claims = suite.claims if isinstance(suite, AccuracySuite) else ()
    for index, claim in enumerate(claims):
        if claim.id in ids:
            yield Complaint(("claims", index, "id"), f"the id {claim.id!r} is taken already")
        ids.append(claim.id)
    for index in idle_exclusions(suite):
        yield Complaint(("exclude", index), "leaves nothing out: no cell matches it")
    try:
        expand(suite)
    except SuiteError as error:
        yield Complaint(("exclude",), error.problems[0].message)


def _problems(source: Source, found: list[Complaint]) -> list[Problem]:
    """Problems without those about a value that the YAML reader already refused."""
    refused = {complaint.location for complaint in source.complaints}
    return [
        source.problem(complaint)
        for complaint in found
        if complaint in source.complaints or complaint.location not in refused
    ]
