"""Layers beyond images: N,C states of a recurrent net and N,C,T sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normbench

STEPS, HIDDEN = 12, 16


class NormalizedRNN(nn.Module):
    """h ← tanh(norm(W·h + U·x)), the same layer at every step (Ba et al. 2016, section 3.1)."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.embed, self.recur = nn.Linear(1, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.norm, self.head = normbench.build(method, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), HIDDEN)
        for t in range(x.shape[1]):
            h = torch.tanh(self.norm(self.recur(h) + self.embed(x[:, t, None])))
        logits: Tensor = self.head(h)
        return logits


def signs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of ±1 and whether most of them are +1 among the last five."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (count, STEPS), generator=generator).float() * 2 - 1
    return x, (x[:, -5:].sum(1) > 0).long()


def learn(method: str) -> NormalizedRNN:
    torch.manual_seed(0)
    model = NormalizedRNN(method)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(150):
        x, y = signs(64, step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("method", ["layer_norm_chw", "layer_norm_channels", "batch_norm"])
def test_a_recurrent_net_learns_with_it(method: str) -> None:
    model = learn(method)
    x, y = signs(500, 10_000)
    with (
        torch.no_grad()
    ):  # of batch norm in training mode: one average for all steps is its weakness
        assert (model.train()(x).argmax(1) == y).float().mean() > 0.9


def test_layer_norm_gives_a_sequence_the_same_whatever_its_company() -> None:
    model = learn("layer_norm_chw").train()
    x, _ = signs(8, 3)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


@pytest.mark.parametrize("shape", [(6, HIDDEN), (6, HIDDEN, 9)], ids=str)
def test_on_vectors_and_sequences_they_are_torchs_own_layers(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    batch = normbench.build("batch_norm", HIDDEN)(x)
    torch.testing.assert_close(batch, nn.BatchNorm1d(HIDDEN)(x))
    channels = normbench.build("layer_norm_channels", HIDDEN)(x)
    expected = F.layer_norm(x.movedim(1, -1), (HIDDEN,)).movedim(-1, 1)
    torch.testing.assert_close(channels, expected)
    torch.testing.assert_close(
        normbench.build("layer_norm_chw", HIDDEN)(x), F.layer_norm(x, shape[1:])
    )
