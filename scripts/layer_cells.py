"""The cells of `make gpu`'s stage layers: every method's layer at sizes of a GPU."""

from __future__ import annotations

from normbench import registry
from normbench.cells import Cell
from normbench.tasks import layer

SHAPES = (
    (32, 64, 56, 56), (32, 256, 14, 14), (32, 2048, 7, 7), (256, 64, 56, 56), (2, 64, 56, 56),
)  # fmt: skip
"""N, C, H, W: wide maps, deep ones, the last of ResNet-50, a large batch and a small one."""


def layer_cells() -> list[Cell]:
    """All cells, shape by shape: in bfloat16 and channels last, with ReLU."""
    return [
        layer.cell(method, shape=shape, part=part, layout="nhwc", precision="bf16")
        for shape in SHAPES
        for part in ("both", "forward")
        for method in registry.list_methods()
    ]
