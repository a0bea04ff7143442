"""What the catalogue says of every method."""

from __future__ import annotations

import json

import pytest

from normbench import registry

# ideas that are no paper's
UNCITED = {"none"}


def test_entry_is_complete(case):
    info = case.info
    assert info.title
    assert info.summary.endswith(".")
    assert info.family
    assert info.policy.endswith(".")
    assert all(p.doc for p in info.params.values())
    assert (info.citation is None) is (info.name in UNCITED)


def test_equation_is_balanced_latex(case):
    equation = case.info.equation
    assert "=" in equation
    assert equation.count("{") == equation.count("}")
    assert equation.count(r"\left") == equation.count(r"\right")


def test_entry_is_json(case):
    entry = json.loads(json.dumps(case.info.to_json(), allow_nan=False))
    assert entry["name"] == case.name
    assert len(entry["code_hash"]) == 16


def test_bibtex_protects_the_title_and_nothing_else(case):
    if case.info.citation is None:
        pytest.skip(f"{case.name} cites nothing")
    lines = case.info.citation.bibtex(case.name).splitlines()
    assert lines[0] in (f"@misc{{{case.name},", f"@inproceedings{{{case.name},")
    assert lines[-1] == "}"
    fields = dict(line.strip().rstrip(",").split(" = ", 1) for line in lines[1:-1])
    assert [name for name, value in fields.items() if value.startswith("{{")] == ["title"]
    assert all(value.startswith("{") and value.endswith("}") for value in fields.values())


def test_defaults_are_valid_and_give_the_bare_name(case):
    defaults = registry.resolve_params(case.name)
    assert registry.resolve_params(case.name, defaults) == defaults
    assert registry.variant(case.name, defaults) == case.name


def test_an_unknown_parameter_is_refused(case):
    with pytest.raises(registry.RegistryError, match="has no parameter 'nonsense'"):
        registry.build(case.name, 16, nonsense=1)
