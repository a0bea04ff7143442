"""Which domain each sample of a batch comes from, told to the layers around the model's forward.

    with normbench.domains.using(ids):
        y = model(x)

A model passes activations between its layers and nothing else; a layer with statistics per domain
reads here whose they are. Without a context every sample is of domain 0. A forward that is run
again in the backward (activation checkpointing) has to find the context open there too.

The state is an attribute of the process and not of the thread or the context: torch.compile guards
on it, so that a compiled model sees the domains change, which it does not for a ContextVar or a
thread's local. Each new assignment compiles anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """The domains of a batch.

    Attributes:
        samples: how many samples the batch has.
        parts: each domain that occurs, ascending, and how many samples it has.
        order: indices that put the samples of a domain next to each other, part after part.
        back: indices that undo that.
    """

    samples: int
    parts: tuple[tuple[int, int], ...]
    order: Tensor
    back: Tensor


class _State:
    assignment: Assignment | None = None


_STATE = _State()


@contextmanager
def using(ids: Tensor) -> Iterator[None]:
    """Tell the layers the domain of each sample: int64, one number from 0 up per sample.

    Reading the numbers waits for their device, once a batch and not once a layer.

    Raises:
        ValueError: if `ids` is not of that kind.
    """
    before, _STATE.assignment = _STATE.assignment, assign(ids)
    try:
        yield
    finally:
        _STATE.assignment = before


def assign(ids: Tensor) -> Assignment:
    """The assignment that these numbers describe.

    Raises:
        ValueError: if `ids` is not int64 of shape N, or has a negative number.
    """
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise ValueError(
            f"domains are int64 of shape N, one per sample; got {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    found, counts = (t.tolist() for t in torch.unique(ids, return_counts=True))
    if found and found[0] < 0:
        raise ValueError(f"domains are numbered from 0 up; got {found[0]}")
    order = torch.argsort(ids, stable=True)
    return Assignment(
        ids.numel(), tuple(zip(found, counts, strict=True)), order, torch.argsort(order)
    )


class _Permuted(torch.autograd.Function):
    """Samples in another order. The gradient of index_select itself would add where it may copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return permuted(grad, back, order), None, None


def permuted(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """The samples of `x` by the indices `order`, a permutation that `back` undoes."""
    y: Tensor = _Permuted.apply(x, order, back)
    return y


def current(samples: int) -> Assignment | None:
    """The domains of the batch that is in the model; None where every sample is of domain 0.

    Raises:
        ValueError: if the context is for a batch of another size than `samples`.
    """
    assignment = _STATE.assignment
    if assignment is not None and assignment.samples != samples:
        raise ValueError(
            f"the batch has {samples} samples, but normbench.domains.using was given "
            f"{assignment.samples} domains"
        )
    return assignment
