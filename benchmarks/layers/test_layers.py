"""Our layers on the CPU against torch's, forward + backward, as ratios within one run.

Rounds of the two sides are interleaved, so that a machine that slows down slows both; the ratio
is that of the medians. Targets: group_norm and layer_norm_* at most 1.1 times torch's own layer,
batch_renorm 1.5 times nn.BatchNorm2d, proxy_norm 2 times (group norm + activation).

    pytest benchmarks/layers -s        # prints the table of ratios
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import timm.layers
import torch
from interleave import interleaved, step
from torch import nn

from normbench import build

SHAPES = {
    "2x16x7x7": (2, 16, 7, 7),
    "8x64x28x28": (8, 64, 28, 28),
    "32x64x14x14": (32, 64, 14, 14),
    "32x64x28x28": (32, 64, 28, 28),
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
AT_ONCE = {"hold": 0, "rmax_full": 0, "dmax_full": 0}

Pair = tuple[Callable[[int], nn.Module], Callable[[int], nn.Module], float]
PAIRS: dict[str, Pair] = {
    "batch_norm": (lambda c: build("batch_norm", c), nn.BatchNorm2d, 1.1),
    "batch_renorm, hold": (lambda c: build("batch_renorm", c), nn.BatchNorm2d, 1.5),
    "batch_renorm, active": (
        lambda c: build("batch_renorm", c, **AT_ONCE),
        nn.BatchNorm2d,
        1.5,
    ),
    "group_norm": (
        lambda c: build("group_norm", c),
        lambda c: nn.GroupNorm(min(32, c), c),
        1.1,
    ),
    "layer_norm_chw": (
        lambda c: build("layer_norm_chw", c),
        lambda c: nn.GroupNorm(1, c),
        1.1,
    ),
    "layer_norm_channels": (
        lambda c: build("layer_norm_channels", c),
        timm.layers.LayerNorm2d,
        1.1,
    ),
    "proxy_norm, ReLU": (
        lambda c: build("proxy_norm", c, act=nn.ReLU()),
        lambda c: nn.Sequential(nn.GroupNorm(1, c), nn.ReLU()),
        2.0,
    ),
    "proxy_norm, SiLU": (
        lambda c: build("proxy_norm", c, act=nn.SiLU()),
        lambda c: nn.Sequential(nn.GroupNorm(1, c), nn.SiLU()),
        2.0,
    ),
}


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows that are printed at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[str] = []
    yield rows
    torch.set_num_threads(threads)
    header = "| layer | input | layout | ours µs | reference µs | ratio | target |"
    print("\n" + "\n".join([header, "|---|---|---|---|---|---|---|", *rows]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_ratio(
    name: str, shape: str, layout: str, table: list[str], benchmark: Callable[..., object]
) -> None:
    """Measures and reports; a miss of the target is in the table, not a failure."""
    dims = SHAPES[shape]
    ours, theirs, target = PAIRS[name]
    memory = {"memory_format": LAYOUTS[layout]}
    x = torch.randn(dims).contiguous(**memory).requires_grad_()
    gradient = torch.randn(dims).contiguous(**memory)
    own, reference = (step(make(dims[1]), x, gradient) for make in (ours, theirs))
    mine, other = interleaved(own, reference)
    benchmark.group = f"{shape} {layout}"  # type: ignore[attr-defined]
    benchmark.extra_info |= {"ratio": mine / other, "target": target}  # type: ignore[attr-defined]
    benchmark.pedantic(own, rounds=5, iterations=1)  # type: ignore[attr-defined]
    table.append(
        f"| {name} | {shape} | {layout} | {mine * 1e6:.0f} | {other * 1e6:.0f} "
        f"| {mine / other:.2f} | {target} |"
    )
