from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from normbench import codehash, registry

FORMULA = '''
"""A formula."""
def scale(x):
    return x * 2
'''
METHOD = '''
"""Title of the method."""
from normbench import registry
from {package}.formula import scale

@registry.register("m", title="M", family="f", equation="y = x", params={{}})
class M:
    """What it does."""
    def forward(self, x):
        return scale(x)  # a comment
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin package on the path; `plugin(method=..., formula=...)` edits it and hashes."""
    monkeypatch.syspath_prepend(tmp_path)
    package = f"plugin_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()

    def hashed(method: str = METHOD, formula: str = FORMULA) -> str:
        (folder / "method.py").write_text(method.format(package=package))
        (folder / "formula.py").write_text(formula)
        codehash.module_hash.cache_clear()
        return codehash.module_hash(f"{package}.method")

    yield hashed
    codehash.module_hash.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Title of the method.", "The method's title."),
        ("What it does.", "What it really does."),
        ("# a comment", "# another"),
        ('title="M"', 'title="The M"'),
        ('equation="y = x"', 'equation="y = 2x", citation=None'),
        ("        return scale(x)", "\n        return (scale(x))"),
        ('family="f"', 'family="f", fallback=lambda device, dtype: "no kernels here"'),
    ],
)
def test_what_only_readers_see_leaves_the_hash(plugin, old, new):
    assert old in METHOD
    assert plugin(METHOD.replace(old, new)) == plugin()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return scale(x)", "return scale(x) + 0"),
        ('family="f"', 'family="f", consumes_activation=True'),
        ('family="f"', 'family="f", fuses_residual=True'),
        ('"m", title', '"n", title'),
        ("def forward", "def run"),
    ],
)
def test_what_decides_the_work_changes_the_hash(plugin, old, new):
    assert old in METHOD
    assert plugin(METHOD.replace(old, new)) != plugin()


def test_a_formula_in_an_imported_module_changes_the_hash(plugin):
    assert plugin(formula=FORMULA.replace("x * 2", "x * 3")) != plugin()


def test_a_docstring_in_an_imported_module_does_not(plugin):
    assert plugin(formula=FORMULA.replace("A formula", "The formula")) == plugin()


@pytest.mark.parametrize(
    ("module", "follows"),
    [
        ("normbench.methods.group_norm", "normbench.kernels.grouped"),
        ("normbench.methods.weight_standardization", "normbench.methods.group_norm"),
        ("normbench.methods.proxy_norm", "normbench.kernels.proxy"),
        ("normbench.methods.batch_norm", "normbench.kernels.channels"),
    ],
)
def test_methods_are_followed_into_the_formulas_they_use(module, follows):
    reached = codehash._reachable(module)
    assert follows in reached
    assert "normbench.registry" not in reached


def test_methods_without_shared_code_have_hashes_of_their_own():
    hashes = [registry.get(name).code_hash() for name in registry.list_methods()]
    assert len(set(hashes)) == len(hashes)


def test_empty_fields_of_newer_pythons_do_not_count():
    assert "type_params" not in codehash.normalized_source("def f(x): return x")
    assert codehash.normalized_source("x = 1") == (
        "Module(body=[Assign(targets=[Name(id='x',ctx=Store())],value=Constant(value=1))])"
    )


def test_an_installed_copy_has_the_same_hashes_as_the_sources(tmp_path, root):
    # a wheel lays kernels/ out as normbench/kernels/
    installed = tmp_path / "site"
    code_only = shutil.ignore_patterns("*.parquet", "__pycache__")
    shutil.copytree(root / "normbench", installed / "normbench", ignore=code_only)
    shutil.copytree(root / "kernels", installed / "normbench" / "kernels")
    code = (
        "import normbench, sys; from normbench.codehash import module_hash;"
        "print(normbench.__file__, module_hash('normbench.methods.proxy_norm'),"
        "'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True,
        capture_output=True, check=True,
    ).stdout.split()  # fmt: skip
    assert found[0].startswith(str(installed))
    assert found[1] == codehash.module_hash("normbench.methods.proxy_norm")
    assert found[2] == "False"  # hashing imports no method


def test_a_module_without_source_ends_with_a_sentence():
    with pytest.raises(ValueError, match="source of module 'math' cannot be found"):
        codehash.module_hash("math")
