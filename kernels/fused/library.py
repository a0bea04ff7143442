"""Registers operators with torch directly: `torch.library.custom_op` costs the host more a call.

On small batches, without CUDA graphs, the host's time is what a step takes
(`benchmarks/kernels/test_host.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("normbench", "FRAGMENT")  # type: ignore[no-untyped-call]

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def operator(
    name: str, fake: Callable[..., Any], mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Make a typed function the operator `normbench::name`, for all devices.

    Args:
        name: of the operator.
        fake: the same results without data, for compilers.
        mutates: names of the arguments written in place. Autograd is told when the operator runs:
            to keep one for a backward and change it is an error then, not a wrong number. Not in
            what `torch.compile` traces, nor do torch's own running averages say it.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=tuple(mutates))
        run, everywhere = _telling(function, mutates), "CompositeExplicitAutograd"
        _library.define(f"{name}{schema}", tags=_TAGS)  # type: ignore[no-untyped-call]
        _library.impl(name, run, everywhere)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"normbench::{name}", fake, lib=_library)
        return getattr(torch.ops.normbench, name).default

    return register


def _telling(function: Callable[..., Any], mutates: Sequence[str]) -> Callable[..., Any]:
    """The function, with the versions of what it mutates raised after it."""
    if not mutates:
        return function
    names = list(inspect.signature(function).parameters)
    places = [names.index(name) for name in mutates]

    def run(*arguments: Any) -> Any:
        result = function(*arguments)
        for place in places:
            changed = arguments[place]
            if isinstance(changed, Tensor) and not changed.is_inference():
                torch.autograd.graph.increment_version(changed)
        return result

    return run
