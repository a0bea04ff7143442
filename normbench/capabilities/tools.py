"""Whether torch's compilers and exporters take the layer: torch.compile, torch.export, ONNX."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from normbench.capabilities.probe import Answer, NotMeasured, probe, sentence
from normbench.capabilities.subject import Subject, change, gradients

AGREES = 1e-4
"""Relative difference in float32 below which two ways to compute the layer agree."""

ROUNDING = 4
"""A compiled value may be so many times farther from float64 than eager's."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@probe("torch.compile", slow=True)
def compiles(subject: Subject) -> Answer:
    """torch.compile(fullgraph=True) with inductor gives eager's values and gradients.

    In training and in evaluation, to a relative difference of 1e-4, or as near to float64 as eager
    is: some gradients are nothing but rounding.
    """
    with _quietly(), torch._inductor.config.patch(compile_threads=1):
        try:
            return _compiled_like(subject.layer(), subject.images())
        except Exception as error:
            _expect_compiler(subject)
            return Answer(False, sentence(_cause(error)))


def _compiled_like(layer: nn.Module, x: Tensor) -> Answer:
    twin, exact, projection = copy.deepcopy(layer), copy.deepcopy(layer), torch.randn_like(x)
    compiled = cast(nn.Module, torch.compile(twin, fullgraph=True))
    for training in (True, False):
        for module in (layer, compiled, exact.double()):
            module.train(training)
        ours, eager = (_values(module, x, projection) for module in (compiled, layer))
        wanted = _values(exact, x.double(), projection.double())
        by = max(map(_apart, ours, eager, wanted))
        if by > AGREES:
            mode = "training" if training else "evaluation"
            return Answer(False, f"differs from eager by {by:.2g} in {mode}")
    return Answer(True)


def _apart(ours: Tensor, eager: Tensor, exact: Tensor) -> float:
    """Relative difference of compiled and eager; 0 where both are as far from float64."""
    off, noise = ((t - exact).norm() for t in (ours, eager))
    return 0.0 if off <= ROUNDING * noise else change(ours, eager)


def _values(layer: nn.Module, batch: Tensor, projection: Tensor) -> list[Tensor]:
    x = batch.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *gradients(y, layer, x, projection)]


def _expect_compiler(subject: Subject) -> None:
    """Tell a layer that does not compile from a machine on which nothing does."""
    try:
        torch.compile(nn.ReLU(), fullgraph=True)(torch.randn(8, device=subject.device))
    except Exception as error:
        reason = f"missing: torch.compile does not work here: {sentence(_cause(error))}"
        raise NotMeasured(reason) from error


def _cause(error: BaseException) -> BaseException:
    """What a compiler's error wraps."""
    inner = getattr(error, "inner_exception", None)
    return inner if isinstance(inner, BaseException) else error


@probe("torch.export")
def exports(subject: Subject) -> Answer:
    """torch.export takes the layer in evaluation, for any batch size, with the same values."""
    layer, x = subject.layer().eval(), subject.images()
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    with _quietly(), torch.no_grad():
        try:
            program = torch.export.export(layer, (x,), dynamic_shapes=(batch,))
        except Exception as error:
            return Answer(False, _without_dynamic_batch(layer, x, error))
        other = subject.images(3, *x.shape[1:])
        return _agrees(program.module()(other), layer(other), "eager")


def _without_dynamic_batch(layer: nn.Module, x: Tensor, refused: Exception) -> str:
    try:
        torch.export.export(layer, (x,))
    except Exception as error:
        return sentence(error)
    return f"only with a fixed batch size: {sentence(refused)}"


@probe("ONNX", slow=True)
def onnx_agrees(subject: Subject) -> Answer:
    """torch.onnx exports the layer in evaluation, and onnxruntime computes the same values.

    To a relative difference of 1e-4. Needs the packages of the extra `onnx`.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NotMeasured(
            f"missing: package {', '.join(missing)} is not installed (normbench[onnx])"
        )
    layer, x = subject.layer().eval().cpu(), subject.images().cpu()
    with _quietly(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        try:
            torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False)
            output = _onnxruntime(path, x)
        except Exception as error:
            return Answer(False, sentence(error))
        return _agrees(output, layer(x), "eager")


def _onnxruntime(path: Path, x: Tensor) -> Tensor:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [output] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(output)


def _agrees(ours: Tensor, theirs: Tensor, name: str) -> Answer:
    by = change(ours, theirs)
    return Answer(True) if by < AGREES else Answer(False, f"differs from {name} by {by:.2g}")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of tools about themselves, and without what they compiled before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        try:
            yield
        finally:
            torch.compiler.reset()
