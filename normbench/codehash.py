"""Hash of a method's code: its syntax tree, with the project modules it imports.

Docstrings, comments and what `@register` only says for readers (title, citation, equation,
meanings of parameters) do not count, so a typo in them invalidates no record; a change in a
shared formula invalidates every method that imports it. The registry, surgery and tasks are not
followed: they are covered by the task's protocol version. Equal code has an equal hash under every
Python version.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path

FORMULA_ROOMS = ("normbench.methods", "normbench.kernels")
"""Packages of ours whose modules hold formulas and are followed when a method imports them."""


HOOKS = frozenset(
    {"consumes_activation", "fuses_residual", "weight", "prepare", "observe", "model"}
)
"""Keywords of `@register` that decide what is done; the others only describe it.

`fallback` describes: the layers themselves choose their path, and whatever code of the method or
its kernels they ask is hashed with them. A better worded reason invalidates no record.
"""


def normalized_source(source: str) -> str:
    """The syntax tree of `source` as text, without docstrings, comments or positions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [statement for statement in node.body if not _is_bare_string(statement)]
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for decorator in filter(_is_register, node.decorator_list):
                assert isinstance(decorator, ast.Call)
                decorator.keywords = [k for k in decorator.keywords if k.arg in HOOKS]
    return _text(tree)


def _is_bare_string(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_register(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name == "register"


def _text(value: object) -> str:
    """As `ast.dump`, but without empty fields: newer Pythons add some that older ones lack."""
    if isinstance(value, ast.AST):
        fields = [(n, v) for n, v in ast.iter_fields(value) if v is not None and v != []]
        return f"{type(value).__name__}({','.join(f'{n}={_text(v)}' for n, v in fields)})"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return repr(value)


@functools.cache
def module_hash(module: str) -> str:
    """16 hex digits for `module` and every module it reaches within its own project.

    Modules of normbench are followed within `FORMULA_ROOMS`; a plugin's modules are followed
    within its top-level package and into `FORMULA_ROOMS`.

    Raises:
        ValueError: if the module's source cannot be found.
    """
    digest = hashlib.sha256()
    for name in sorted(_reachable(module)):
        digest.update(name.encode())
        digest.update(normalized_source(_source(name)).encode())
    return digest.hexdigest()[:16]


def _reachable(module: str) -> set[str]:
    own = () if module.startswith("normbench.") else (module.partition(".")[0],)
    rooms = FORMULA_ROOMS + own
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo.extend(m for m in _imports(name) if _inside(m, rooms) and _is_module(m))
    return seen


def _imports(module: str) -> set[str]:
    """Absolute names of what `module` imports; `from a import b` gives both `a` and `a.b`."""
    spec = importlib.util.find_spec(module)
    package = module if spec and spec.submodule_search_locations else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    # The bare packages only gather their members: following them would tie every method to all.
    return names - set(FORMULA_ROOMS)


def _inside(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def _is_module(name: str) -> bool:
    # To look for `a.b.c` find_spec imports `a.b`: fine for a package, needless work (torch!) for
    # a module, in which c is an attribute.
    parent = name.rpartition(".")[0]
    try:
        above = importlib.util.find_spec(parent) if parent else None
        if parent and (above is None or above.submodule_search_locations is None):
            return False
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _source(module: str) -> str:
    if module == "__main__":
        raise ValueError(
            "a method registered in a script or notebook has no code hash, as workers cannot "
            "import it: put it into a module of its own"
        )
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"the source of module {module!r} cannot be found, so it has no code hash")
    return Path(spec.origin).read_text(encoding="utf-8")
