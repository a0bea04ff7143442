"""The fused kernels on CUDA: graphs, torch.compile, autocast, streams, DDP, sizes beyond 2³¹.

What they compute is put to them by tests/interpreter, which `make gpu` runs compiled.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normbench
from normbench.kernels.fused.launch import recording
from normbench.registry import TrainingPlan, get

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: `make gpu` runs these on one"
)

RENORM = {"hold": 2, "rmax_full": 6, "dmax_full": 5, "momentum": 0.2}
METHODS = {
    "batch_norm_triton": {},
    "batch_renorm_triton": RENORM,
    "proxy_norm_triton": {"groups": 4},
    "group_norm_triton": {"groups": 4},
    "layer_norm_chw_triton": {},
}
BATCH_NORMS = ("batch_norm_triton", "batch_renorm_triton")
LAYOUTS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=str
)
SMALL, LARGE = (2, 64, 7, 7), (32, 64, 56, 56)
"""One launch; several."""

GIB = 2**30


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in normbench.list_methods():
        pytest.skip(f"there is no {name}")
    return name


@pytest.fixture(autouse=True)
def same_convolutions() -> Iterator[None]:
    """The same products in every run: what differs is the kernels' doing."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """The host must not wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def layer_of(method: str, channels: int = 64, act: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    layer = normbench.build(method, channels, act=act or nn.ReLU(), **METHODS[method]).cuda()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1.0, 0.3)
    if (prepare := get(method).prepare) is not None:
        prepare(layer, TrainingPlan(total_steps=10))
    return layer.train()


def given(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cuda") * 2 + 0.5
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def step(layer: nn.Module, x: Tensor, residual: Tensor | None, g: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    y = layer(*leaves)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *parameters], g)]


def residual_for(method: str, shape: tuple[int, ...]) -> Tensor | None:
    return given(shape, 1) if method in BATCH_NORMS else None


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_kernels_are_what_runs(method: str) -> None:
    with recording() as launches:
        step(layer_of(method), given(LARGE), residual_for(method, LARGE), given(LARGE, 2))
    assert launches
    assert get(method).why_eager(torch.device("cuda"), torch.bfloat16) == ""


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
def test_a_captured_step_is_the_step_and_goes_on_when_replayed(
    method: str, shape: tuple[int, ...]
) -> None:
    """Running values, Renorm's step and its count of active steps move with every replay."""
    ours, captured = layer_of(method), layer_of(method)
    x, residual, g = given(shape), residual_for(method, shape), given(shape, 2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # where the inputs are made
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        step(captured, x, residual, g)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            outputs = step(captured, x, residual, g)
    step(ours, x, residual, g)  # the one before capturing; capturing itself runs nothing
    for number in range(6):
        x.copy_(given(shape, 10 + number) * (1 + number) + number)
        expected = step(ours, x, residual, g)
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        assert same(outputs, expected), number
        for name, buffer in ours.named_buffers():
            assert torch.equal(buffer, captured.get_buffer(name)), (number, name)
    if method in BATCH_NORMS:
        assert int(captured.num_batches_tracked) == 7
    if method == "batch_renorm_triton":
        assert 0 < int(captured.active_steps) < 7


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
def test_compiled_whole_by_inductor(method: str, shape: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    layer = layer_of(method)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True)
    for seed in range(3):
        x, residual, g = given(shape, seed), residual_for(method, shape), given(shape, 9)
        assert same(step(compiled, x, residual, g), step(layer, x, residual, g))
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(method: str, dtype: torch.dtype) -> None:
    layer = layer_of(method)
    model = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1).cuda(), layer)
    plain, proxy = method.removesuffix("_triton"), "proxy" in method
    eager = normbench.build(plain, 64, act=nn.ReLU() if proxy else None, **METHODS[method]).cuda()
    eager.load_state_dict(layer.state_dict())
    x = given((8, 16, 28, 28), dtype=torch.float32)
    with torch.autocast("cuda", dtype):
        middle = model[0](x)
        y = layer(middle)
        y.float().square().mean().backward()
    assert y.dtype is middle.dtype is dtype
    expected = eager.train()(middle.detach().float())
    expected = expected if proxy else F.relu(expected)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype is torch.float32
        assert parameter.grad.isfinite().all()


def test_the_host_never_waits(method: str, request: pytest.FixtureRequest) -> None:
    layer = layer_of(method)
    x, residual, g = given(LARGE), residual_for(method, LARGE), given(LARGE, 2)
    step(layer, x, residual, g)  # compiles
    layer.eval()(x)
    request.getfixturevalue("no_waiting")
    layer.train()
    for _ in range(3):
        step(layer, x, residual, g)
    with torch.no_grad():
        layer.eval()(x)


@pytest.mark.parametrize("shape", [SMALL, LARGE, (64, 256, 14, 14), (8, 3, 61, 61)], ids=str)
def test_the_same_bits_twenty_times_beside_other_work(method: str, shape: tuple[int, ...]) -> None:
    built = layer_of(method, shape[1])
    x, residual, g = given(shape), residual_for(method, shape), given(shape, 2)
    busy, other = torch.randn(2048, 2048, device="cuda"), torch.cuda.Stream()
    first: list[Tensor] = []
    for _ in range(20):
        layer = copy.deepcopy(built)
        with torch.cuda.stream(other):
            for _ in range(4):
                busy = busy @ busy * 1e-3
        found = step(layer, x, residual, g) + [b.clone() for b in layer.buffers()]
        first = first or found
        assert same(found, first)


def test_on_a_side_stream_behind_its_work(method: str) -> None:
    layer = layer_of(method)
    x, residual, g = given(LARGE), residual_for(method, LARGE), given(LARGE, 2)
    expected = step(copy.deepcopy(layer), x, residual, g)
    late = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # x arrives long after the launches
        late.copy_(x)
        found = step(layer, late, residual, g)
    stream.synchronize()
    assert same(found, expected)


def test_ddp_on_one_rank(method: str, tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(8, 64, 1), normbench.build(method, 64, act=nn.ReLU(),
                              **METHODS[method])).cuda()  # fmt: skip
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(plain), device_ids=[0])
        for seed in range(3):
            x = given((4, 8, 14, 14), seed, torch.float32)
            for model in (plain, wrapped):
                model.zero_grad()
                model(x).square().mean().backward()
            for mine, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True):
                torch.testing.assert_close(theirs.grad, mine.grad)
    finally:
        torch.distributed.destroy_process_group()


def wide(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel in float64, summed in pieces."""
    count = x.numel() // x.shape[1]
    mean = sum(p.double().sum([0, 2, 3]) for p in x.split(64)) / count
    square = sum((p.double() - wide(mean)).square().sum([0, 2, 3]) for p in x.split(64)) / count
    return mean, torch.sqrt(square + 1e-5)


@LAYOUTS
def test_more_than_two_to_the_31_elements(memory_format: torch.memory_format) -> None:
    """The first, middle and last samples of output and gradient."""
    shape = (2688, 64, 112, 112)
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 40 * GIB:
        pytest.skip("needs 40 GiB of free memory on the device")
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=memory_format)
    g = torch.empty_like(x)
    torch.manual_seed(0)
    for tensor in (x, g):
        for piece in tensor.split(64):
            piece.copy_(torch.randn(piece.shape, device="cuda") + 0.5)
    assert x.numel() > 2**31
    layer = normbench.build("batch_norm_triton", 64, act=nn.ReLU()).cuda()
    y, dx, *_ = step(layer, x, None, g)

    mean, std = mean_and_std(x)
    mean_dz, mean_dot = (torch.zeros(64, dtype=torch.float64, device="cuda") for _ in range(2))
    count = x.numel() // 64
    for piece, dy in zip(x.split(64), g.split(64), strict=True):
        normal = (piece.double() - wide(mean)) / wide(std)
        dz = torch.where(normal > 0, dy.double(), 0)
        mean_dz += dz.sum([0, 2, 3]) / count
        mean_dot += (dz * normal).sum([0, 2, 3]) / count
    for part in (slice(0, 2), slice(1342, 1346), slice(2686, 2688)):
        normal = (x[part].double() - wide(mean)) / wide(std)
        torch.testing.assert_close(y[part].double(), normal.relu(), rtol=8e-3, atol=1e-5)
        dz = torch.where(normal > 0, g[part].double(), 0)
        wanted = (dz - wide(mean_dz) - normal * wide(mean_dot)) / wide(std)
        clear = normal.abs() > 1e-3  # of ReLU's kink
        found = dx[part].double()
        torch.testing.assert_close(found[clear], wanted[clear], rtol=8e-3, atol=1e-4)
