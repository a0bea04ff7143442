"""Suites: YAML files that say what to compare, and the cells they stand for."""

from __future__ import annotations

from normbench.suites.errors import Problem, SuiteError
from normbench.suites.expand import expand
from normbench.suites.load import load_suite
from normbench.suites.schema import Suite, json_schema

__all__ = ["Problem", "Suite", "SuiteError", "expand", "json_schema", "load_suite"]
