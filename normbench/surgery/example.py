"""The input a model is watched with, when the caller gives none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, product

import torch
from torch import nn

from normbench.surgery.report import SurgeryError

SMALL_SIDES = (64, 128, 84)
"""Sides tried before the configured one: slots and their order do not depend on the size.

84 is for patches of 14, which divide no power of two.
"""

BATCH = 2
"""Samples watched: the smallest batch that has batch statistics everywhere."""


def candidates(model: nn.Module, example_input: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Inputs to try, small ones first; only the given one if it is given.

    Raises:
        SurgeryError: if the model has no timm configuration and no input is given.
    """
    if example_input is not None:
        yield example_input[:BATCH].to(_device(model))
        return
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    if not config.get("input_size"):
        raise SurgeryError(
            f"{type(model).__name__} has no timm configuration that says what its input looks "
            "like: pass example_input, a batch of at least one sample"
        )
    configured, height, width = config["input_size"]
    # A stem that folds space into depth (TResNet) gives its first conv more than the image has.
    channels = dict.fromkeys((input_channels(model), configured))
    sides = [(min(side, height), min(side, width)) for side in SMALL_SIDES]
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    sizes = [*sides, tuple(built_for or ()), (height, width)]
    if config.get("fixed_input_size"):
        sizes = sizes[len(SMALL_SIDES) :]
    generator = torch.Generator().manual_seed(0)  # leaves the global generator alone
    for size, depth in product(dict.fromkeys(size for size in sizes if size), channels):
        image = torch.randn(BATCH, depth, *size, generator=generator)
        yield image.to(device=_device(model), dtype=_dtype(model))


def input_channels(model: nn.Module) -> int:
    """Channels of a timm model's first convolution: `in_chans` does not reach the configuration."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    first = config.get("first_conv")
    name = next(iter(first), None) if isinstance(first, (tuple, list)) else first
    for path, module in model.named_modules():
        is_first = path == name if isinstance(name, str) else isinstance(module, nn.Conv2d)
        if is_first and isinstance(channels := getattr(module, "in_channels", None), int):
            return channels
    return int(config["input_size"][0])


def _device(model: nn.Module) -> torch.device:
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
