from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from normbench import build, swap

C = 6


@pytest.mark.parametrize(
    ("batch", "size", "chunks"),
    [(8, 4, [4, 4]), (7, 3, [3, 3, 1]), (5, 8, [5]), (3, 1, [1, 1, 1]), (4, 4, [4])],
)
def test_it_is_torchs_batch_norm_on_each_chunk(batch, size, chunks):
    ours, torchs = build("ghost_batch_norm", C, ghost_size=size), nn.BatchNorm2d(C)
    for _ in range(2):
        x = torch.randn(batch, C, 4, 3) * 2 + torch.arange(batch).view(-1, 1, 1, 1)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        probe = torch.randn_like(x)
        ya, yb = ours(a), torch.cat([torchs(part) for part in b.split(chunks)])
        torch.testing.assert_close(ya, yb)
        (ya * probe).sum().backward()
        (yb * probe).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, torchs.weight.grad)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_a_batch_counts_once_whatever_its_chunks():
    layer = build("ghost_batch_norm", C, ghost_size=2)
    layer(torch.randn(8, C, 3, 3))
    assert layer.num_batches_tracked == 1


def test_up_to_ghost_size_it_is_batch_norm():
    x = torch.randn(128, C)
    assert torch.equal(build("ghost_batch_norm", C)(x), build("batch_norm", C)(x))


def test_beyond_ghost_size_it_is_not():
    x = torch.randn(256, C)
    assert not torch.allclose(build("ghost_batch_norm", C)(x), build("batch_norm", C)(x))


def test_a_last_chunk_of_one_value_joins_the_one_before():
    layer, plain = build("ghost_batch_norm", C, ghost_size=2), build("batch_norm", C)
    x = torch.randn(5, C)
    expected = torch.cat([plain(x[:2]), plain(x[2:])])
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_var, plain.running_var)


@pytest.mark.parametrize("shape", [(4, C), (4, C, 1, 1)])
def test_chunks_of_one_value_are_refused(shape):
    layer = build("ghost_batch_norm", C, ghost_size=1)
    with pytest.raises(ValueError, match="values per channel"):
        layer(torch.randn(shape))
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_var, torch.ones(C))


def test_ghosts_of_one_sample_are_instance_norm_in_training():
    x = torch.randn(4, C, 5, 5)
    expected = build("instance_norm", C)(x)
    torch.testing.assert_close(build("ghost_batch_norm", C, ghost_size=1)(x), expected)


def test_samples_of_other_chunks_have_no_influence():
    layer = build("ghost_batch_norm", C, ghost_size=2)
    x = torch.randn(6, C, 3, 3, requires_grad=True)
    layer(x)[2:4].cos().sum().backward()
    touched = x.grad.abs().amax((1, 2, 3)) > 0
    assert touched.tolist() == [False, False, True, True, False, False]


def test_channels_last_is_kept_over_several_chunks():
    x = torch.randn(6, C, 4, 4).contiguous(memory_format=torch.channels_last)
    y = build("ghost_batch_norm", C, ghost_size=4)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains(name):
    model = timm.create_model(name, num_classes=10)
    report = swap(model, "ghost_batch_norm", ghost_size=2)
    assert report.replaced == report.found
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(torch.randn(5, 3, 96, 96)), torch.arange(5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
