"""The catalogue of methods: register, look up, validate parameters, build.

A method is one file in `normbench/methods/` (or a plugin's module under the entry-point group
`normbench.methods`) with one `@register(...)`. Parameters are read off the builder's signature,
so that nothing is declared twice; every one needs a `Param` with its meaning and bounds.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from normbench.codehash import module_hash
from normbench.method_info import (
    Citation,
    Fallback,
    MethodInfo,
    Param,
    RegistryError,
    TrainingPlan,
    UnsupportedError,
)

__all__ = [
    "Citation", "Fallback", "MethodInfo", "Param", "RegistryError", "TrainingPlan",
    "UnsupportedError", "build", "get", "list_methods", "nearest", "parse_variant", "register",
    "resolve_params", "variant",
]  # fmt: skip

ENTRY_POINT_GROUP = "normbench.methods"

T = TypeVar("T", bound=Callable[..., nn.Module])


_METHODS: dict[str, MethodInfo] = {}
_BROKEN_PLUGINS: dict[str, str] = {}


def register(
    name: str,
    *,
    title: str,
    family: str,
    equation: str,
    params: Mapping[str, Param] | None = None,
    citation: Citation | None = None,
    consumes_activation: bool = False,
    fuses_residual: bool = False,
    weight: Callable[..., nn.Module | None] | None = None,
    prepare: Callable[[nn.Module, TrainingPlan], None] | None = None,
    observe: Callable[[nn.Module], Mapping[str, float]] | None = None,
    model: Callable[..., None] | None = None,
    policy: str = "",
    fallback: Fallback | None = None,
) -> Callable[[T], T]:
    """Decorate a builder, usually a module class, to enter it in the catalogue.

    The first paragraph of the builder's docstring becomes the method's summary.

    Raises:
        RegistryError: if the name is taken by another builder, is not lower_snake_case, the
            signature and `params` do not name the same parameters, or `fuses_residual` stands
            without `consumes_activation`.
    """

    def enter(builder: T) -> T:
        module = builder.__module__
        taken = _METHODS.get(name)
        same = taken is not None and taken.builder.__qualname__ == builder.__qualname__
        if taken is not None and not (same and taken.module == module):  # a reload is no collision
            raise RegistryError(f"method {name!r} is already registered by {taken.module}")
        if not (name.isidentifier() and name == name.lower()):
            raise RegistryError(f"method name {name!r} is not lower_snake_case")
        if fuses_residual and not consumes_activation:
            raise RegistryError(f"method {name!r}: fuses_residual needs consumes_activation")
        summary = " ".join(inspect.cleandoc(builder.__doc__ or "").split("\n\n")[0].split())
        _METHODS[name] = MethodInfo(
            name, title, family, equation, citation,
            _with_defaults(name, builder, params or {}), builder,
            consumes_activation, weight, prepare, observe, model, policy, module, summary,
            fallback=fallback, fuses_residual=fuses_residual,
        )  # fmt: skip
        # Hashed now, not when first asked for: an edit of the file during a long run must not put
        # its hash on records of the code that was loaded. Without source there is no hash, and
        # whoever asks for it is told so.
        with contextlib.suppress(ValueError):
            module_hash(module)
        return builder

    return enter


def _with_defaults(
    name: str, builder: Callable[..., nn.Module], params: Mapping[str, Param]
) -> dict[str, Param]:
    signature = inspect.signature(builder)
    keywords = [p for p in list(signature.parameters.values())[1:] if p.name != "act"]
    names = [p.name for p in keywords]
    if set(names) != set(params):
        raise RegistryError(
            f"method {name!r}: the signature has {names}, `params` describes {sorted(params)}"
        )
    if missing := [p.name for p in keywords if p.default is inspect.Parameter.empty]:
        raise RegistryError(f"method {name!r}: parameters without a default: {missing}")
    return {p.name: replace(params[p.name], default=p.default) for p in keywords}


@functools.cache
def _load_all() -> None:
    package = importlib.import_module("normbench.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"normbench.methods.{module.name}")
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:  # a broken plugin must not take the catalogue down with it
            _BROKEN_PLUGINS[point.name] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"plugin {point.name!r} ({point.value}) did not load: {error}", stacklevel=2
            )


def nearest(word: str, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the valid name closest to `word`, or the list of valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def list_methods(family: str | None = None) -> list[str]:
    """Names of all registered methods, sorted; of one family if given."""
    _load_all()
    return sorted(n for n, m in _METHODS.items() if family in (None, m.family))


def get(name: str) -> MethodInfo:
    """The catalogue entry of a method.

    Raises:
        RegistryError: if there is none, with the nearest valid name.
    """
    if name not in _METHODS:
        _load_all()
    if name in _METHODS:
        return _METHODS[name]
    if name in _BROKEN_PLUGINS:
        raise RegistryError(f"method {name!r} comes from a broken plugin: {_BROKEN_PLUGINS[name]}")
    raise RegistryError(f"unknown method {name!r}; {nearest(name, _METHODS)}")


def resolve_params(name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All parameters of a method, defaults filled in, validated.

    Raises:
        RegistryError: for an unknown method or parameter, a wrong type or a value out of bounds.
    """
    info = get(name)
    given = given or {}
    for key in given:
        if key not in info.params:
            known = nearest(key, info.params) if info.params else "it takes none"
            raise RegistryError(f"method {name!r} has no parameter {key!r}; {known}")
    return {
        key: param.check(f"{name}: {key}", given[key]) if key in given else param.default
        for key, param in info.params.items()
    }


def variant(name: str, params: Mapping[str, Any] | None = None) -> str:
    """Canonical string: `group_norm`, `batch_norm(eps=0.001)`; only what differs from defaults."""
    info = get(name)
    resolved = resolve_params(name, params)
    changed = [f"{k}={v}" for k, v in sorted(resolved.items()) if v != info.params[k].default]
    return f"{name}({', '.join(changed)})" if changed else name


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """Inverse of `variant`: `"group_norm(groups=8)"` to `("group_norm", {"groups": 8})`.

    Raises:
        RegistryError: if the text is not `name` or `name(key=value, ...)` with literal values.
    """
    problem = f"{text!r} is not a method: expected name or name(key=value, ...)"
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
            raise RegistryError(problem)
        given = {str(k.arg): _literal(k.value) for k in node.keywords}
        if len(given) < len(node.keywords):
            raise RegistryError(f"{text!r} gives a parameter twice")
        return node.func.id, given
    except RegistryError:
        raise
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise RegistryError(problem) from error


def _literal(node: ast.expr) -> Any:
    """A literal; a bare word counts as a string, as `variant` prints strings unquoted."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def build(name: str, num_features: int, act: nn.Module | None = None, **params: Any) -> nn.Module:
    """Build one layer: `build("group_norm", 64, groups=8)`.

    Args:
        name: a method of the catalogue.
        num_features: channels C of the N,C,* input.
        act: activation that follows; methods that own their activation apply it, others ignore it.
        params: the method's parameters.

    Raises:
        RegistryError: for an unknown method or parameter, or a value out of bounds.
    """
    if num_features < 1:
        raise RegistryError(f"num_features is {num_features}; expected at least 1")
    return get(name).builder(num_features, act=act, **resolve_params(name, params))
