"""sync_batch_norm in two real processes against batch norm on all their values at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from normbench import build, swap

C = 3
STEPS = 2


@dataclass(frozen=True)
class Case:
    """The input's shape on each of the two processes."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    affine: bool = True
    last: bool = False

    def inputs(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Input and gradient of the output on each process; the second's lie elsewhere."""
        generator = torch.Generator().manual_seed(step)
        pairs = []
        for rank, shape in enumerate((self.first, self.second)):
            x, probe = (torch.randn(shape, generator=generator).double() for _ in range(2))
            x = (x * (1 + rank) + 3 * rank).to(self.dtype)
            pairs.append((channels_last(x) if self.last else x, probe.to(self.dtype)))
        return pairs

    def layer(self, name: str) -> nn.Module:
        layer = build(name, C, affine=self.affine, momentum=0.3, eps=1e-3)
        for number, parameter in enumerate(layer.parameters()):
            parameter.data += torch.linspace(-2, 1, C) * (number + 1)
        return layer.double() if self.dtype == torch.float64 else layer


CASES = {
    "alike": Case((4, C, 5, 3), (4, C, 5, 3)),
    "batches of other sizes": Case((5, C, 4, 4), (2, C, 4, 4)),
    "maps of other sizes": Case((2, C, 3, 3), (1, C, 5, 5)),
    "vectors": Case((4, C), (3, C)),
    "one value on each": Case((1, C), (1, C, 1, 1)),
    "sequences and volumes": Case((2, C, 7), (2, C, 2, 3, 2)),
    "not affine": Case((3, C, 4, 4), (2, C, 4, 4), affine=False),
    "float32": Case((3, C, 6, 6), (5, C, 6, 6), torch.float32),
    "bfloat16": Case((3, C, 6, 6), (5, C, 6, 6), torch.bfloat16),
    "channels last": Case((3, C, 4, 4), (2, C, 4, 4), torch.float32, last=True),
}


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def train(layer: nn.Module, x: Tensor, probe: Tensor) -> dict[str, Tensor]:
    """Output, gradients and state of one step."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    leaves = {"x": leaf} | dict(layer.named_parameters())
    gradients = torch.autograd.grad(y, list(leaves.values()), probe)
    found = {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}
    state = {n: v.clone() for n, v in layer.named_buffers()}
    return {"y": y.detach()} | found | state


def in_process(rank: int, folder: str) -> None:
    """What each of the two processes does: all cases, its results into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        layer = case.layer("sync_batch_norm")
        steps = [train(layer, *case.inputs(step)[rank]) for step in range(STEPS)]
        evaluated = layer.eval()(case.inputs(0)[rank][0])
        found[name] = {"steps": steps, "evaluated": evaluated.detach()}
    with pytest.raises(ValueError, match="values per channel"):  # on both, before they would meet
        build("sync_batch_norm", C)(torch.randn(0, C, 2, 2))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both processes, by case."""
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(in_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def as_rows(x: Tensor) -> Tensor:
    """Every value of a channel in its column: pixels as samples."""
    return x.movedim(1, -1).reshape(-1, C)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_batch_norm_on_the_pooled_values(processes, name):
    case, reference = CASES[name], CASES[name].layer("batch_norm")
    close = {"rtol": 1e-10, "atol": 1e-10} if case.dtype == torch.float64 else {}
    if case.dtype == torch.bfloat16:
        close = {"rtol": 0.02, "atol": 0.02}
    for step in range(STEPS):
        pairs = zip(*case.inputs(step), strict=True)
        expected = train(reference, *(torch.cat([as_rows(t) for t in both]) for both in pairs))
        one, other = (process[name]["steps"][step] for process in processes)
        assert one["y"].shape == case.first
        assert one["y"].dtype == case.dtype
        for what, value in expected.items():
            if what in ("y", "gradient of x"):
                found = torch.cat([as_rows(one[what]), as_rows(other[what])])
            elif what.startswith("gradient"):
                found = one[what] + other[what]
            else:
                found = one[what]
                assert torch.equal(found, other[what]), what
            torch.testing.assert_close(found, value, **close, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_evaluation_is_each_process_alone_with_the_shared_averages(processes, name):
    case, reference = CASES[name], CASES[name].layer("batch_norm")
    for step in range(STEPS):
        reference(torch.cat([as_rows(x) for x, _ in case.inputs(step)]))
    for process, (x, _) in zip(processes, case.inputs(0), strict=True):
        expected, half = reference.eval()(x), case.dtype == torch.bfloat16
        close = {"rtol": 0.02, "atol": 0.02} if half else {}
        torch.testing.assert_close(process[name]["evaluated"], expected, **close)


def test_channels_last_is_kept(processes):
    result = processes[0]["channels last"]["steps"][0]
    for what in ("y", "gradient of x"):
        assert result[what].is_contiguous(memory_format=torch.channels_last)


def test_the_processes_do_not_merely_agree_with_their_own_batches(processes):
    case = CASES["alike"]
    alone = train(case.layer("batch_norm"), *case.inputs(0)[0])
    assert not torch.allclose(processes[0]["alike"]["steps"][0]["y"], alone["y"], atol=0.1)


def test_without_a_group_it_is_batch_norm():
    ours, plain = build("sync_batch_norm", 8), build("batch_norm", 8)
    for _ in range(2):
        x = torch.randn(4, 8, 5, 5)
        assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
    with pytest.raises(ValueError, match="values per channel"):
        ours(torch.randn(1, 8))


def test_a_group_of_one_process_changes_nothing(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        x = torch.randn(4, 8, 5, 5)
        assert torch.equal(build("sync_batch_norm", 8)(x), build("batch_norm", 8)(x))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains(name):
    model = timm.create_model(name, num_classes=10)
    report = swap(model, "sync_batch_norm")
    assert report.replaced == report.found
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 96, 96)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
