"""Fold normalizations into the convolutions before them: what evaluation needs of them is affine.

In evaluation batch norm is y = a·x + b per channel with constants a and b, and after a convolution
a·(W*x + c) + b = (a·W)*x + (a·c + b): the network without the norm computes the same, which is what
is meant by batch norm being a reparametrisation. Whether a layer is of that kind is not declared
but tried: in float64, on random maps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbench.surgery.deferred import Waiting
from normbench.surgery.kinds import Parts, take_apart, walk
from normbench.surgery.places import places, put
from normbench.surgery.report import SurgeryError
from normbench.surgery.slots import duplicate, survey
from normbench.surgery.watch import watch_feeders

FEEDERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose output channels are the first dim of `weight`."""

LIKE = 1e-9
"""Relative difference in float64 up to which two results count as the same."""


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What a fold did.

    Attributes:
        folded: path of each normalization that is gone, and of the layer that does its work.
        left: path of each other normalization, and why it stays.
        error: largest difference of the model's outputs before and after, in float64, relative to
            the largest output.
    """

    folded: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]
    error: float


def fold(model: nn.Module, *, example_input: Tensor | None = None) -> FoldReport:
    """Fold every normalization that allows it into the layer before it, in place.

    The model must be in evaluation mode and is for evaluation only afterwards. Works for every
    normalization that is one scale and shift per channel in evaluation (batch norm and what behaves
    like it), directly after a convolution or linear layer whose output nothing else reads.

    Args:
        model: built already, not yet compiled; a timm model needs no `example_input`.
        example_input: a batch of inputs, of which two samples are used.

    Returns:
        What was folded, what was left, and why.

    Raises:
        SurgeryError: if the model is in training mode, has no normalizations, does not run, or
            would not compute the same. The model is unchanged then.
    """
    if model.training:
        raise SurgeryError("folding is for evaluation: call model.eval() first")
    found = survey(model, example_input)
    pairs, left = _pairs(model, found.copy, found.example)
    left = [*found.refused, *left]
    error = _try_on_copies(model, pairs, found.example)
    _apply(model, pairs)
    return FoldReport(tuple((norm, feeder) for norm, feeder in pairs.items()), tuple(left), error)


def _pairs(
    model: nn.Module, twin: nn.Module, example: Tensor
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Foldable normalizations by path with the path of their feeder, and the others' reasons."""
    norms = {n: m for n, m in walk(twin) if isinstance(take_apart(m), Parts)}
    feeders = {n: (m, m.weight.shape[0]) for n, m in walk(twin) if isinstance(m, FEEDERS)}
    seen = watch_feeders(twin, feeders, norms, list(walk(twin)), example)
    before = {
        s.direct.activation: (n, s.direct.hindered({(n, False)}))
        for n, s in seen.items()
        if s.direct.activation is not None
    }
    pairs: dict[str, str] = {}
    left: list[tuple[str, str]] = []
    for name in norms:
        feeder, obstacle = before.get(
            name, ("", "no convolution or linear layer feeds it directly")
        )
        reason = obstacle or _unfoldable(model.get_submodule(feeder), model.get_submodule(name))
        if reason:
            left.append((name, reason))
        else:
            pairs[name] = feeder
    return pairs, left


def _unfoldable(feeder: nn.Module, norm: nn.Module) -> str:
    """Why a pair cannot be folded; empty if it can."""
    parts = take_apart(norm)
    assert isinstance(parts, Parts)
    if isinstance(parts.core, Waiting):
        return "it adds the shortcut as well; swap in a method that does not"
    if _affine(parts) is None:
        return "its evaluation is not one scale and shift per channel"
    if not _scales_with_its_weight(feeder):
        return f"the {type(feeder).__name__} before it does not scale with its weight"
    return ""


def _affine(parts: Parts) -> tuple[Tensor, Tensor] | None:
    """Scale and shift per channel in float64; None if evaluation is something else."""
    layer = copy.deepcopy(parts.core).double().cpu().eval()
    for name in ("drop", "act"):  # timm's BatchNormAct2d applies them itself
        if getattr(parts.core, name, None) is getattr(parts, name) and getattr(parts, name):
            setattr(layer, name, nn.Identity())
    general = copy.deepcopy(layer)
    for parameter in general.parameters():  # gamma = 0 would make a constant of any layer
        parameter.data += 0.7
    channels = parts.num_features
    for shape in ((2, channels, 3, 3), (2, channels, 3), (2, channels)):
        try:
            is_affine = _scale_and_shift(general, shape) is not None
            return _scale_and_shift(layer, shape) if is_affine else None
        except (ValueError, RuntimeError):  # made for other dims, or refuses such an input
            continue
    return None


@torch.no_grad()
def _scale_and_shift(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=generator) + 1
    zero, one, y = (layer(v) for v in (torch.zeros_like(x), torch.ones_like(x), x))
    dims = (1, -1, *[1] * (x.dim() - 2))
    shift = zero.reshape(*shape[:2], -1)[0, :, 0]
    scale = one.reshape(*shape[:2], -1)[0, :, 0] - shift
    return (scale, shift) if _same(y, scale.reshape(dims) * x + shift.reshape(dims)) else None


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= LIKE * (1 + b.abs().max()))


def _scales_with_its_weight(feeder: nn.Module) -> bool:
    """Whether a factor on each filter is one on each channel; not where weights are normalized."""
    layer = copy.deepcopy(feeder).double().cpu().eval()
    _bake(layer)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_input_shape(layer), dtype=torch.float64, generator=generator)
    with torch.no_grad():
        before = layer(x)
        channels = before.shape[1]
        factor = 1 + torch.rand(channels, dtype=torch.float64, generator=generator)
        _scale(layer, factor, torch.zeros_like(factor))
        dims = (1, -1) if isinstance(layer, nn.Linear) else (1, -1, *[1] * (before.dim() - 2))
        return _same(layer(x), before * factor.reshape(dims))


def _input_shape(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (2, layer.in_features)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    sides = ((k - 1) * d + 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True))
    return (2, layer.in_channels, *sides)


def _try_on_copies(model: nn.Module, pairs: dict[str, str], example: Tensor) -> float:
    """Fold a copy in float64 and compare it with the model; the relative difference."""
    before, after = (duplicate(model).double().eval() for _ in range(2))
    _apply(after, pairs)
    with torch.no_grad():
        expected, found = (_first(m(example.double())) for m in (before, after))
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
    if not error <= 1e-6:
        raise SurgeryError(
            f"{type(model).__name__} computes something else after folding {len(pairs)} "
            f"normalizations: its outputs differ by {error:.1e}"
        )
    return error


def _apply(model: nn.Module, pairs: dict[str, str]) -> None:
    for name, feeder_name in pairs.items():
        norm, feeder = model.get_submodule(name), model.get_submodule(feeder_name)
        parts = take_apart(norm)
        assert isinstance(parts, Parts)
        affine = _affine(parts)
        assert affine is not None
        _bake(feeder)
        _scale(feeder, *affine)
        rest = [m for m in (parts.drop, parts.act) if m is not None]
        after = nn.Identity() if not rest else rest[0] if len(rest) == 1 else nn.Sequential(*rest)
        put(model, places(model, norm), after)


def _bake(feeder: nn.Module) -> None:
    """Make a parametrized weight an ordinary one, as it is in use now."""
    if parametrize.is_parametrized(feeder, "weight"):
        weight, bias = feeder.weight, feeder._parameters.get("bias")
        assert isinstance(weight, Tensor)
        # torch's own removal changes the class, which copies of the layer share.
        del feeder._modules["parametrizations"]
        feeder.__class__ = type(feeder).__bases__[0]
        feeder._parameters = {"weight": nn.Parameter(weight.detach().clone()), "bias": bias}


@torch.no_grad()
def _scale(feeder: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """W → a·W and c → a·c + b, computed in float64."""
    weight, bias = feeder.weight, feeder.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    a, b = (v.to(weight.device) for v in (scale, shift))
    wide = weight.double() * a.reshape(-1, *[1] * (weight.dim() - 1))
    shifted = b if bias is None else bias.double() * a + b
    feeder.weight = nn.Parameter(wide.to(weight.dtype), requires_grad=weight.requires_grad)
    feeder.bias = nn.Parameter(shifted.to(weight.dtype), requires_grad=weight.requires_grad)


def _first(output: object) -> Tensor:
    """The tensor that stands for a model's output."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    if isinstance(output, dict):
        output = next(iter(output.values()))
    assert isinstance(output, Tensor)
    return output
