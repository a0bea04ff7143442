"""What is seen of a forward pass: who reads a slot's output, and where the sum with it goes.

A slot's output is recognised by tensor identity *and* version: an in-place add keeps the identity
but raises the version, so `x += shortcut; act(x)` does not count as the slot's activation. Module
hooks see modules; a TorchFunctionMode sees the functions called between them, so that a functional
activation, or a second reader of the slot's output, is noticed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normbench.surgery.kinds import is_activation

ACTIVATION, FUNCTIONAL = "activation", "the functional activation"
"""Kinds of readers that matter: a module that can be moved, a function that cannot."""

ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
"""Functions that add a shortcut; torch calls `x += y` an `add_`."""

_FUNCTIONS = {
    "celu", "clamp", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish",
    "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "tanh",
}  # fmt: skip

_ENDS = {"linear", "matmul", "bmm", "einsum", "scaled_dot_product_attention", "__matmul__"}
"""Functions whose result is a new feature map, whatever its shape; convolutions too."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Something that read a slot's output: an activation module, another module, a function."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(slots=True, eq=False)
class Call:
    """One call of a slot: the output, kept so that its id stays its own, and who read it.

    Attributes:
        slot: path of the slot.
        output: what it returned, or what became of that.
        version: of the tensor when it was returned.
        values: values per channel and sample.
        readers: in the order of reading.
        origin: the slot's own call, where `output` is what became of its output.
        hurdle: what stands between the slot's own output and this one.
        sum: the output after a tensor of the same shape was added, if one was.
    """

    slot: str
    output: torch.Tensor
    version: int
    values: int
    readers: list[Reader] = field(default_factory=list)
    origin: Call | None = None
    hurdle: str = ""
    sum: Call | None = None

    @property
    def after_sum(self) -> bool:
        """Whether this is what was seen of the sum."""
        return self.origin is not None and self.origin.sum is self


class Watcher(TorchFunctionMode):
    """Follows the outputs of slots through one forward pass."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.calls: list[Call] = []
        self.callers: dict[str, list[Call | None]] = defaultdict(list)
        self._live: dict[int, Call] = {}
        self._depth = 0
        self._inside: list[tuple[str, str]] = []

    def read(self, values: Any, reader: Reader) -> list[Call]:
        """Note `reader` for every slot output among `values`, as it left the slot."""
        found = [call for tensor in _tensors(values) if (call := self._call(tensor))]
        for call in found:
            call.readers.append(reader)
        return found

    def _call(self, tensor: torch.Tensor) -> Call | None:
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
        first = next(((t, call) for t, _, call in given if not call.after_sum), None)
        if first and isinstance(result, torch.Tensor):
            self._follow(*first, name, args, kwargs, result)
        return result

    def _follow(
        self, tensor: torch.Tensor, call: Call, name: str, args: Any, kwargs: Any, result: Any
    ) -> None:
        """Follow a slot's output into the sum with a shortcut, or past what stands before it."""
        if result is tensor and tensor._version == call.version:
            return
        origin = call.origin or call
        after = Call(call.slot, result, result._version, call.values, [], origin, call.hurdle)
        if name in ADDITIONS and not kwargs and _alike(args):
            origin.sum = after
        elif name in _ENDS or name.startswith("conv") or result.shape != tensor.shape:
            return
        else:
            after.hurdle = call.hurdle or self._between(call.slot) or f"the function {name}"
        self._live[id(result)] = after

    def _between(self, slot: str) -> str:
        """Class of the outermost module now running that the slot is not in; empty if none."""
        around = (kind for path, kind in self._inside if not slot.startswith(f"{path}."))
        return next(around, "")

    def enter_module(self, name: str, kind: str) -> None:
        """A module begins that is neither slot nor activation."""
        self._inside.append((name, kind))

    def leave_module(self) -> None:
        """It ends."""
        self._inside.pop()

    def passed_through(self, name: str, kind: str, args: Any, output: Any) -> None:
        """A module that hands its very input on, such as a dropout in evaluation."""
        if not self._depth and any(tensor is output for tensor in _tensors(args)):
            for call in self.read(args, Reader("the module", name)):
                call.hurdle = call.hurdle or kind

    def enter_slot(self, name: str, args: Any) -> None:
        """A slot begins; what it does inside is its own."""
        if not self._depth:
            self.read(args, Reader("the normalization", name))
        self._depth += 1

    def leave_slot(self, name: str, channels: int, output: Any) -> None:
        """A slot ends with an output to be followed."""
        self._depth -= 1
        if isinstance(output, torch.Tensor):
            values = output.numel() // (channels * self.batch)
            call = Call(name, output, output._version, values)
            self.calls.append(call)
            self._live[id(output)] = call

    def enter_activation(self, name: str, args: Any) -> None:
        """An activation begins, or another module that counts as the follower."""
        found = self.read(args, Reader(ACTIVATION, name)) if not self._depth else []
        self.callers[name].append(found[0] if found else None)
        self._depth += 1

    def leave_activation(self) -> None:
        """It ends."""
        self._depth -= 1


def hook_slot(watcher: Watcher, name: str, module: nn.Module, channels: int) -> list[Any]:
    """Have a watcher told of a slot's calls; the handles of the hooks."""

    def after(_: nn.Module, args: Any, output: Any) -> None:
        watcher.leave_slot(name, channels, output)

    before: Callable[[nn.Module, Any], None] = lambda _, args: watcher.enter_slot(name, args)  # noqa: E731
    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def hook_reader(watcher: Watcher, name: str, module: nn.Module) -> list[Any]:
    """Have a watcher told of the calls of an activation; the handles of the hooks."""
    return [
        module.register_forward_pre_hook(lambda _, args: watcher.enter_activation(name, args)),
        module.register_forward_hook(lambda *_: watcher.leave_activation()),
    ]


def hook_other(watcher: Watcher, name: str, module: nn.Module) -> list[Any]:
    """Have a watcher told of any other module, an activation or not; the handles of the hooks."""
    if is_activation(module):
        return hook_reader(watcher, name, module)
    kind, is_leaf = type(module).__name__, next(module.children(), None) is None

    def after(_: nn.Module, args: Any, output: Any) -> None:
        watcher.leave_module()
        if is_leaf:
            watcher.passed_through(name, kind, args, output)

    before: Callable[[nn.Module, Any], None] = lambda *_: watcher.enter_module(name, kind)  # noqa: E731
    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _alike(args: Any) -> bool:
    """Whether these are two tensors of one shape and dtype."""
    if len(args) != 2 or not all(isinstance(value, torch.Tensor) for value in args):
        return False
    one, other = args
    return bool(one.shape == other.shape and one.dtype == other.dtype)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Tensors among arguments, looking into tuples, lists and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
