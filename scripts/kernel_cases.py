"""Which kernels the gates compile: every launch of these shapes and forms, once.

A launch is recorded from the code that really launches, with tensors on the meta device. Launches
that Triton would compile to the same kernel count once, under the first shape and form that have
them; so a form in this list may own nothing of a kernel.

To add a family of kernels, write its forms (`batch_norm_forms` is one) and name them in `FAMILIES`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from normbench.kernels.fused import batch_launches, batch_plans, proxy_launches
from normbench.kernels.fused.activations import (
    GELU,
    GELU_TANH,
    HARDSWISH,
    IDENTITY,
    RELU,
    SILU,
)
from normbench.kernels.fused.launch import Launch, recording

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Shape:
    """A class of inputs, and how much of the kernels is compiled for it.

    Attributes:
        sizes: N, C, H, W.
        last: whether channels are innermost in memory.
        dtype: a name of `DTYPES`.
        depth: 0 for the common forms, 1 for some more, 2 for all.
        together: whether the cooperative forms are compiled too; that way must fit.
    """

    sizes: tuple[int, int, int, int]
    last: bool
    dtype: str = "bf16"
    depth: int = 0
    together: bool = False

    @property
    def name(self) -> str:
        """As the budget has it: 32x256x56x56 last bf16."""
        return f"{'x'.join(map(str, self.sizes))} {'last' if self.last else 'first'} {self.dtype}"

    def tensor(self) -> Tensor:
        """An input of this class, without memory."""
        x = torch.empty(self.sizes, dtype=DTYPES[self.dtype], device="meta")
        return x.contiguous(memory_format=torch.channels_last) if self.last else x


def _both(n: int, c: int, h: int, w: int, *, depth: int = 0) -> Iterator[Shape]:
    for last in (True, False):
        yield Shape((n, c, h, w), last, depth=depth)


SHAPES = (
    Shape((32, 256, 56, 56), True, depth=2),
    Shape((32, 256, 56, 56), False, depth=1),
    *_both(2, 2048, 7, 7, depth=1),  # held by one program each
    Shape((32, 512, 28, 28), False, depth=1),  # gone over twice by one program each
    Shape((32, 2048, 7, 7), True, depth=1),
    *_both(32, 64, 112, 112),
    Shape((32, 512, 28, 28), True),
    *_both(32, 1024, 14, 14),
    Shape((32, 2048, 7, 7), False),
    Shape((256, 1024, 14, 14), False),  # at larger batches other kernels take these
    Shape((1024, 2048, 7, 7), False),
    Shape((2, 256, 56, 56), False),  # the largest tile that a program holds
    Shape((8, 2048, 7, 7), True),
    Shape((8, 512, 28, 28), True, together=True),  # x stays in the cache
    Shape((8, 64, 112, 112), False, together=True),
    Shape((32, 66, 28, 28), True, together=True),  # the addresses of most loads
    *_both(32, 72, 28, 28),
    *_both(32, 63, 7, 7),
    Shape((256, 63, 7, 7), True),
    Shape((32, 256, 56, 56), True, "fp32"),
    Shape((32, 256, 56, 56), False, "fp32"),
    Shape((32, 256, 56, 56), True, "fp16"),
)
"""ResNet-50's shapes in both layouts, and what is awkward: odd sizes, small batches, types."""

Forms = Callable[[Shape], Iterator[tuple[str, Callable[[], object]]]]
"""Names of forms, each with what launches its kernels."""


@dataclass(frozen=True, slots=True)
class _Form:
    name: str
    act: int
    add: bool = False
    depth: int = 2
    training: bool = True
    renorm: bool = False
    parameters: bool = True
    differentiated: bool = True
    frozen: bool = False
    programs: int = 0


_BATCH_NORM = (
    _Form("relu", RELU, depth=0),
    _Form("add+relu", RELU, add=True, depth=0),
    _Form("none", IDENTITY, depth=1),
    _Form("silu", SILU),
    _Form("add+silu", SILU, add=True, depth=1),
    _Form("add", IDENTITY, add=True),
    _Form("gelu", GELU),
    _Form("gelu-tanh", GELU_TANH),
    _Form("hardswish", HARDSWISH),
    _Form("renorm+relu", RELU, renorm=True, depth=1),
    _Form("no-grad+add+relu", RELU, add=True, differentiated=False),
    _Form("bare", IDENTITY, parameters=False),
    _Form("eval+relu", RELU, training=False),
    _Form("eval+add+relu", RELU, add=True, training=False),
    _Form("eval+frozen+relu", RELU, training=False, frozen=True),
    _Form("eval+no-grad+relu", RELU, training=False, differentiated=False),
    _Form("cooperative+relu", RELU, programs=2, depth=0),
    _Form("cooperative+add+relu", RELU, add=True, programs=2, depth=0),
    _Form("cooperative+add+silu", SILU, add=True, programs=2, depth=0),
    _Form("cooperative+renorm+relu", RELU, renorm=True, programs=2, depth=0),
)


def batch_norm_forms(shape: Shape) -> Iterator[tuple[str, Callable[[], object]]]:
    """Batch norm and Batch Renorm: forward and backward, training and evaluation."""
    for form in _BATCH_NORM:
        if form.depth <= shape.depth and (shape.together or not form.programs):
            yield form.name, functools.partial(_with_programs, shape, form)


def _with_programs(shape: Shape, form: _Form) -> None:
    with mock.patch.object(batch_plans, "COOPERATIVE", form.programs):
        _batch_norm(shape, form)


def _batch_norm(shape: Shape, form: _Form) -> None:
    x = shape.tensor()
    residual = shape.tensor() if form.add else None
    channel = torch.empty(shape.sizes[1], device="meta")
    weight = bias = channel if form.parameters else None
    if form.training:
        count = torch.empty((), dtype=torch.int64, device="meta")
        limits = (3.0, 5.0, 0.0, 1.0, 1.0)
        renorm = batch_launches.Renorm(count, count, count, limits) if form.renorm else None
        running = channel if form.parameters else None
        y, saved, bits = batch_launches.forward(
            x, residual, weight, bias, running, running, 0.1, 1e-5, form.act, form.differentiated,
            count if form.parameters else None, renorm,
        )  # fmt: skip
    else:
        keep, bits = form.differentiated, x.new_empty(0)
        y, saved = batch_launches.evaluate(
            x, residual, weight, bias, channel, channel, 1e-5, form.act, keep
        )
    if form.differentiated:
        kept = None if form.act == IDENTITY or bits.numel() else residual
        batch_launches.backward(
            y, x, saved, kept, bits, form.act, form.add, form.parameters and not form.frozen,
            not form.training,
        )  # fmt: skip


_PROXY_NORM = (
    ("proxy+relu", RELU, 1, False, 0),
    ("proxy+silu+exact", SILU, 32, True, 1),
    ("proxy+relu+exact", RELU, 1, True, 2),
)
"""Name, activation, groups, exact moments, depth."""


def proxy_norm_forms(shape: Shape) -> Iterator[tuple[str, Callable[[], object]]]:
    """ProxyNorm on layer norm and group norm, forward and backward, in shapes of some depth."""
    for name, act, groups, exact, depth in _PROXY_NORM:
        if depth <= shape.depth and shape.depth and shape.sizes[1] % groups == 0:
            settings = proxy_launches.Settings(act, groups, 1e-5, 0.03, exact)
            yield name, functools.partial(_of_samples, shape, settings, 4)


def _of_samples(shape: Shape, settings: proxy_launches.Settings, parameters: int) -> None:
    x, channel = shape.tensor(), torch.empty(shape.sizes[1], device="meta")
    learned = proxy_launches.Learned(*[channel] * parameters, *[None] * (4 - parameters))
    y, statistics, moments = proxy_launches.forward(x, learned, settings)
    proxy_launches.backward(y, x, statistics, moments, learned, settings)


_GROUP_NORM = (
    ("group+relu", RELU, 32, 2, 1),
    ("layer+silu", SILU, 1, 2, 2),
    ("group+relu+bare", RELU, 32, 0, 2),
)
"""Name, activation, groups, number of parameters, depth."""


def group_norm_forms(shape: Shape) -> Iterator[tuple[str, Callable[[], object]]]:
    """Group norm and layer norm over C,H,W, forward and backward, in shapes of some depth."""
    for name, act, groups, parameters, depth in _GROUP_NORM:
        if depth <= shape.depth and shape.sizes[1] % groups == 0:
            settings = proxy_launches.Settings(act, groups, 1e-5, 0.0, exact=False)
            yield name, functools.partial(_of_samples, shape, settings, parameters)


FAMILIES: tuple[Forms, ...] = (batch_norm_forms, proxy_norm_forms, group_norm_forms)

ELSEWHERE = {"relu", "add+relu", "proxy+relu", "cooperative+add+relu"}
"""Forms that are compiled for the other targets too, with channels last; cooperative ones with
either layout, and for NVIDIA's alone, since they run nowhere else."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel to compile: the first shape and form that launch it."""

    shape: Shape
    form: str
    launch: Launch

    @property
    def elsewhere(self) -> bool:
        """Whether it is compiled for all targets."""
        chosen = self.launch.cooperative or (self.shape.depth > 0 and self.shape.last)
        return chosen and self.form in ELSEWHERE

    @property
    def name(self) -> str:
        """Shape, kernel, form."""
        return f"{self.shape.name} | {kernel_name(self.launch)} | {self.form}"


def kernel_name(launch: Launch) -> str:
    """Module and name: streaming.apply."""
    return f"{launch.kernel.__module__.rpartition('.')[2]}.{launch.kernel.__name__}"


@functools.cache
def entries() -> dict[str, Entry]:
    """All kernels to compile, by name."""
    seen: set[tuple[object, ...]] = set()
    found: dict[str, Entry] = {}
    for shape in SHAPES:
        for family in FAMILIES:
            for form, launch in family(shape):
                with recording() as launches:
                    launch()
                for one in launches:
                    entry = Entry(shape, form, one)
                    if (same := _compiled_as(one)) in seen:
                        continue
                    if entry.name in found:
                        raise ValueError(f"one form launches two kernels of a name: {entry.name}")
                    seen.add(same)
                    found[entry.name] = entry
    return found


def _compiled_as(launch: Launch) -> tuple[object, ...]:
    """What Triton compiles a kernel for; equal for launches that share the machine code."""
    types = tuple(
        (name, value.dtype if isinstance(value, Tensor) else type(value))
        for name, value in sorted(launch.arguments.items())
    )
    return kernel_name(launch), types, tuple(sorted(launch.constants.items())), launch.warps
