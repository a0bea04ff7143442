"""FLOPs of a layer's forward, counted op by op as aten carries them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normbench.capabilities.probe import Answer, NotMeasured, probe
from normbench.capabilities.subject import Subject

VARIANCE = 4
"""Per element: the sum for the mean, then subtract, square and add."""

PER_INPUT_ELEMENT = {
    "sum": 1, "mean": 1, "amax": 1, "amin": 1, "cumsum": 1,
    "var": VARIANCE, "var_mean": VARIANCE, "batch_norm_update_stats": VARIANCE,
    "native_group_norm": VARIANCE + 2,  # one scale and one shift per channel of each sample
    "native_layer_norm": VARIANCE + 4,  # scale and shift of the statistics, then of the affine
    "_softmax": 4, "_log_softmax": 4,  # maximum, subtract, exponentiate, add
}  # fmt: skip
"""Reductions and fused norms."""

PER_OUTPUT_ELEMENT = {"addcmul": 2, "addcdiv": 2, "lerp": 3}
"""Elementwise ops of several operations; all others count one, transcendental functions too."""

MOVES = {
    "_to_copy", "_unsafe_view", "arange", "bitwise_not", "cat", "clone", "copy", "empty",
    "empty_like", "empty_strided", "eq", "eye", "fill", "full", "full_like", "ge", "gt", "index",
    "index_copy", "index_select", "_local_scalar_dense", "le", "lt", "nan_to_num", "ne",
    "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like",
    "scalar_tensor", "stack", "where", "zero", "zeros", "zeros_like",
}  # fmt: skip
"""Ops without arithmetic: copies, constants, comparisons, choices."""


def _product(args: Sequence[Any], out: Any) -> int:
    """A matrix product: a multiplication and an addition per term."""
    left = next(leaf for leaf in args[-2:] if isinstance(leaf, Tensor))
    return 2 * int(left.shape[-1]) * int(out.numel())


def _batch_norm(args: Sequence[Any], out: Any) -> int:
    """input, weight, bias, running_mean, running_var, training, …: statistics if it trains."""
    return (VARIANCE * bool(args[5]) + 2) * int(args[0].numel())


def _eigen(args: Sequence[Any], out: Any) -> int:
    """Of n×n matrices with eigenvectors: about 9n³ (Golub & Van Loan, Matrix Computations)."""
    return 9 * int(args[0].shape[-1]) * int(args[0].numel())


COUNTED: dict[str, Callable[[Sequence[Any], Any], int]] = {
    "mm": _product, "bmm": _product, "addmm": _product, "baddbmm": _product,
    "native_batch_norm": _batch_norm, "_linalg_eigh": _eigen,
}  # fmt: skip


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up FLOPs, and keeps the names of ops that it has no count for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.unknown = 0, set[str]()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._add(func, args, out)
        return out

    def _add(self, func: OpOverload, args: tuple[Any, ...], out: Any) -> None:
        name = func.overloadpacket.__name__
        name = name[:-1] if name.endswith("_") else name  # in place or not
        if name in COUNTED:
            self.count += COUNTED[name](args, out)
        elif name in PER_INPUT_ELEMENT:
            self.count += PER_INPUT_ELEMENT[name] * _elements(args[:1])
        elif name in PER_OUTPUT_ELEMENT or (torch.Tag.pointwise in func.tags and name not in MOVES):
            self.count += PER_OUTPUT_ELEMENT.get(name, 1) * _elements(out)
        elif name not in MOVES:
            self.unknown.add(name)


def _elements(values: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


@probe("FLOPs", unit="per element", alone="always")
def flops_per_element(subject: Subject) -> Answer:
    """FLOPs of a training forward per element of the activation, ReLU included.

    Counted from the aten ops that run: one per element for elementwise ops (square roots and
    exponentials too) and sums, four for a variance, 2mnk for matrix products; copies, comparisons
    and choices are free. A fused norm counts what its equation needs. What a weight side does to
    the convolution is not in it.
    """
    slot, x = subject.slot(), subject.activations().requires_grad_()
    with _Flops() as flops:
        slot(x)
    if flops.unknown:
        raise NotMeasured(f"missing: no count for {', '.join(sorted(flops.unknown))}")
    return Answer(round(flops.count / x.numel(), 2))
