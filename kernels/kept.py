"""A value that a compiled backward is given, where it would compute it anew."""

from __future__ import annotations

import torch
from torch import Tensor


def kept(values: Tensor) -> Tensor:
    """The same values; `torch.compile` saves them for the backward.

    For what a layer takes from a buffer and then, in the same forward, moves on. A compiled
    backward recomputes cheap elementwise results from the inputs of the graph instead of saving
    them, also where the input is a buffer that has been overwritten in between (torch 2.15), and
    the gradient is silently wrong. A median is not on the list of what it recomputes. There is no
    gradient through this.
    """
    if not torch.compiler.is_compiling():
        return values
    return values.detach()[None].median(0).values
