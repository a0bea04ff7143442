"""Watch one forward pass: which activation follows which normalization, and who else looks.

A slot's output is recognised by tensor identity *and* version: an in-place add keeps the identity
but raises the version, so `x += shortcut; act(x)` does not count as the slot's activation. Module
hooks see modules; a TorchFunctionMode sees the functions called between them, so that a functional
activation, or a second reader of the slot's output, is noticed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normbench.surgery.kinds import is_activation

ACTIVATION, FUNCTIONAL = "activation", "the functional activation"
"""Kinds of readers that matter: a module that can be moved, a function that cannot."""

_FUNCTIONS = {
    "celu", "clamp", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish",
    "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "tanh",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reader:
    """Something that read a slot's output: an activation module, another module, a function."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(slots=True)
class _Call:
    """One call of a slot: the output, kept so that its id stays its own, and who read it."""

    slot: str
    output: torch.Tensor
    version: int
    values: int
    readers: list[Reader] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen of one slot.

    Attributes:
        order: rank of its first call; slots that did not run come last.
        values_per_sample: values per channel and sample, the smallest over its calls; 0 if none.
        activation: path of the activation module that follows directly, or None.
        obstacle: why an activation that follows cannot be moved into the slot; empty if it can,
            or if none follows.
    """

    order: int
    values_per_sample: int
    activation: str | None
    obstacle: str


class _Watcher(TorchFunctionMode):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.calls: list[_Call] = []
        self.callers: dict[str, list[str | None]] = defaultdict(list)
        self._live: dict[int, _Call] = {}
        self._depth = 0

    def read(self, values: Any, reader: Reader) -> list[_Call]:
        """Note `reader` for every slot output among `values`, as it left the slot."""
        found = [call for tensor in _tensors(values) if (call := self._call(tensor))]
        for call in found:
            call.readers.append(reader)
        return found

    def _call(self, tensor: torch.Tensor) -> _Call | None:
        call = self._live.get(id(tensor))
        return call if call is not None and call.version == tensor._version else None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        given = [(t, t._version, call) for t in _tensors((args, kwargs)) if (call := self._call(t))]
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        for tensor, version, call in given:
            # Asking for a shape, or a `contiguous()` that had nothing to do, is not reading.
            unchanged = result is tensor and tensor._version == version and "drop" not in name
            if not unchanged and next(_tensors(result), None) is not None:
                kind = FUNCTIONAL if name.rstrip("_") in _FUNCTIONS else "the function"
                call.readers.append(Reader(kind, name))
        return result

    def enter_slot(self, name: str, args: Any) -> None:
        if not self._depth:
            self.read(args, Reader("the normalization", name))
        self._depth += 1

    def leave_slot(self, name: str, channels: int, output: Any) -> None:
        self._depth -= 1
        if isinstance(output, torch.Tensor):
            values = output.numel() // (channels * self.batch)
            call = _Call(name, output, output._version, values)
            self.calls.append(call)
            self._live[id(output)] = call

    def enter_activation(self, name: str, args: Any) -> None:
        found = self.read(args, Reader(ACTIVATION, name)) if not self._depth else []
        self.callers[name].append(found[0].slot if found else None)
        self._depth += 1

    def leave_activation(self) -> None:
        self._depth -= 1

    def passed_through(self, name: str, args: Any, output: Any) -> None:
        """A module that hands its very input on, such as a dropout in evaluation."""
        if not self._depth and any(tensor is output for tensor in _tensors(args)):
            self.read(args, Reader("the module", name))


def watch(
    model: nn.Module,
    slots: Mapping[str, tuple[nn.Module, int]],
    outside: Iterable[tuple[str, nn.Module]],
    example: torch.Tensor,
) -> dict[str, Sighting]:
    """Run the model once in evaluation mode without gradients and watch its slots.

    The model's training flags are not restored: give a copy.

    Args:
        model: what to run.
        slots: path to module and number of channels.
        outside: path and module of everything that is not inside a slot.
        example: input, batch first.
    """
    watcher = _Watcher(len(example))
    handles = []
    for name, (module, channels) in slots.items():
        handles += _hook_slot(watcher, name, module, channels)
    known = {id(module) for module, _ in slots.values()}
    for name, module in outside:
        if id(module) not in known and not isinstance(module, nn.Identity):
            known.add(id(module))
            handles += _hook_other(watcher, name, module)
    try:
        with torch.no_grad(), watcher:
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _sighting(name, rank, watcher) for rank, name in _ranks(watcher, slots)}


def _hook_slot(watcher: _Watcher, name: str, module: nn.Module, channels: int) -> list[Any]:
    def after(_: nn.Module, args: Any, output: Any) -> None:
        watcher.leave_slot(name, channels, output)

    before: Callable[[nn.Module, Any], None] = lambda _, args: watcher.enter_slot(name, args)  # noqa: E731
    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _hook_reader(watcher: _Watcher, name: str, module: nn.Module) -> list[Any]:
    return [
        module.register_forward_pre_hook(lambda _, args: watcher.enter_activation(name, args)),
        module.register_forward_hook(lambda *_: watcher.leave_activation()),
    ]


def _hook_other(watcher: _Watcher, name: str, module: nn.Module) -> list[Any]:
    if is_activation(module):
        return _hook_reader(watcher, name, module)
    if next(module.children(), None) is None:
        hook = lambda _, args, output: watcher.passed_through(name, args, output)  # noqa: E731
        return [module.register_forward_hook(hook)]
    return []


def _ranks(watcher: _Watcher, slots: Iterable[str]) -> enumerate[str]:
    return enumerate(dict.fromkeys([*(call.slot for call in watcher.calls), *slots]))


def _sighting(name: str, rank: int, watcher: _Watcher) -> Sighting:
    calls = [call for call in watcher.calls if call.slot == name]
    if not calls:
        return Sighting(rank, 0, None, "")
    values = min(call.values for call in calls)
    activation, obstacle = _follower(name, calls, watcher.callers)
    return Sighting(rank, values, activation, obstacle)


def _follower(
    slot: str, calls: list[_Call], callers: Mapping[str, list[str | None]]
) -> tuple[str | None, str]:
    """The activation that follows every call of a slot, and what keeps it from moving."""
    readers = [[reader for reader in call.readers if reader.kind == ACTIVATION] for call in calls]
    names = sorted({reader.name for of_call in readers for reader in of_call})
    others = {str(r) for call in calls for r in call.readers if r.kind != ACTIVATION}
    if not names:
        functional = sorted(other for other in others if other.startswith(FUNCTIONAL))
        return None, f"{' and '.join(functional)} cannot be removed" if functional else ""
    if len(names) > 1:
        some = ", ".join(names[:2]) + " …" * (len(names) > 2)
        return None, f"{len(names)} activations follow it: {some}"
    (name,) = names
    if not all(readers):
        return None, f"activation {name} follows some of its outputs only"
    if others:
        return name, f"its output also goes to {' and '.join(sorted(others))}"
    if any(caller != slot for caller in callers[name]):
        return name, f"activation {name} serves other places too"
    return name, ""


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Tensors among arguments, looking into tuples, lists and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def watch_feeders(
    model: nn.Module,
    feeders: Mapping[str, tuple[nn.Module, int]],
    norms: Mapping[str, nn.Module],
    outside: Iterable[tuple[str, nn.Module]],
    example: torch.Tensor,
) -> dict[str, Sighting]:
    """Run the model once in evaluation mode and watch which normalization follows a convolution.

    The model's training flags are not restored: give a copy.

    Args:
        model: what to run.
        feeders: path to convolution or linear layer and number of its output channels.
        norms: path to module of every normalization.
        outside: path and module of everything that is not inside a normalization.
        example: input, batch first.

    Returns:
        By feeder; `activation` of a sighting is the path of the normalization that follows.
    """
    watcher = _Watcher(len(example))
    handles = []
    for name, (module, channels) in feeders.items():
        handles += _hook_slot(watcher, name, module, channels)
    known = {id(module) for module, _ in feeders.values()}
    for name, module in norms.items():
        known.add(id(module))
        handles += _hook_reader(watcher, name, module)
    for name, module in outside:
        if id(module) not in known and not is_activation(module):
            known.add(id(module))
            handles += _hook_other(watcher, name, module)
    try:
        with torch.no_grad(), watcher:
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _sighting(name, rank, watcher) for rank, name in _ranks(watcher, feeders)}
