"""What interpreted kernels read and write: bytes of each argument, and nothing beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from normbench.kernels.fused.launch import Launch, recording


class Traffic:
    """Bytes by kernel and argument; every lane that a mask does not hide counts.

    Raises IndexError, which Triton wraps, at an access outside of the launch's arguments.
    """

    def __init__(self, launches: list[Launch]) -> None:
        self._launches = launches
        self.bytes: Counter[tuple[str, str]] = Counter()

    def note(self, pointers: Any, mask: Any) -> None:
        """Count one load or store of a tile."""
        addresses = np.asarray(pointers.data)[np.asarray(mask.data)]
        if addresses.size and self._launches:  # a test's own kernel is not launched by `run`
            launch = self._launches[-1]
            size = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
            name = _owner(launch, int(addresses.min()), int(addresses.max()) + size)
            self.bytes[launch.kernel.__name__, name] += addresses.size * size

    def passes(self, x: Tensor) -> float:
        """All bytes as a multiple of those of x."""
        return sum(self.bytes.values()) / (x.numel() * x.element_size())

    def table(self, x: Tensor) -> str:
        """The same for each kernel and argument, for a message."""
        one = x.numel() * x.element_size()
        rows = (f"{kernel}: {name} {n / one:.4f}" for (kernel, name), n in self.bytes.items())
        return "; ".join(rows)


def _owner(launch: Launch, start: int, stop: int) -> str:
    for name, tensor in launch.arguments.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            first = tensor.data_ptr()
            steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            if first <= start and stop <= first + (steps + 1) * tensor.element_size():
                return name
    raise IndexError(f"{launch.kernel.__name__} reads or writes outside of its arguments")


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what the interpreter loads and stores for the kernels launched inside."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    load, store = Builder.create_masked_load, Builder.create_masked_store
    with recording() as launches:
        traffic = Traffic(launches)

        def counting_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            traffic.note(pointers, mask)
            return load(self, pointers, mask, *rest)

        def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            traffic.note(pointers, mask)
            return store(self, pointers, value, mask, *rest)

        Builder.create_masked_load, Builder.create_masked_store = counting_load, counting_store
        try:
            yield traffic
        finally:
            Builder.create_masked_load, Builder.create_masked_store = load, store
