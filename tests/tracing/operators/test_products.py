"""Attentions whose heads share tables: rotations, norms of each head, keys for several queries."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit as pk

WIDTH = 8
TOKENS = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(3))


def halves(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat([-second, first], -1)


def neighbours(x: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([-odd, even], -1).flatten(-2)


TURNS = {"halves": halves, "neighbours": neighbours}


class Attention(nn.Module):
    """Four heads of queries; ``shared`` of them read the keys and values of one head."""

    def __init__(
        self, turn: str = "", shared: int = 1, sharing: str = "expand", norm: str = ""
    ) -> None:
        super().__init__()
        self.turn, self.shared, self.sharing = turn, shared, sharing
        self.q, self.o = nn.Linear(32, 32), nn.Linear(32, 32)
        self.k, self.v = nn.Linear(32, 32 // shared), nn.Linear(32, 32 // shared)
        self.norm: nn.Module = nn.Identity()
        if norm:
            self.norm = nn.LayerNorm(WIDTH) if norm == "LayerNorm" else nn.RMSNorm(WIDTH)
        self.register_buffer("rates", 0.1 ** torch.arange(WIDTH // 2), persistent=False)
        self.head = nn.Linear(32, 5)

    def turned(self, x: Tensor) -> Tensor:
        if not self.turn:
            return x
        angles = torch.arange(x.shape[-2])[:, None] * self.rates
        if self.turn == "halves":
            angles = torch.cat([angles, angles], -1)
        else:
            angles = angles.repeat_interleave(2, -1)
        return x * angles.cos() + TURNS[self.turn](x) * angles.sin()

    def for_all(self, x: Tensor) -> Tensor:
        if self.sharing == "expand":
            batch, heads, count, width = x.shape
            x = x[:, :, None].expand(batch, heads, self.shared, count, width)
            return x.reshape(batch, heads * self.shared, count, width)
        return x.repeat_interleave(self.shared, 1) if self.sharing == "repeat" else x

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        q, k, v = (
            layer(x).view(batch, count, -1, WIDTH).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = self.turned(self.norm(q)), self.turned(self.norm(k))
        if self.shared > 1:
            k, v = self.for_all(k), self.for_all(v)
        grouped = self.shared > 1 and self.sharing == "operator"
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        out: Tensor = self.head(x + self.o(mixed.transpose(1, 2).reshape(batch, count, -1)))
        return out


def drawn(**settings: object) -> Attention:
    torch.manual_seed(5)
    return Attention(**settings).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "heads"),
    [
        ({}, 4),
        ({"turn": "halves"}, 4),
        ({"turn": "neighbours"}, 4),
        ({"norm": "LayerNorm"}, 4),
        ({"norm": "RMSNorm", "turn": "halves"}, 4),
        ({"shared": 2}, 2),
        ({"shared": 2, "turn": "halves"}, 2),
        ({"shared": 2, "sharing": "repeat", "turn": "neighbours"}, 2),
        ({"shared": 2, "sharing": "operator", "turn": "halves", "norm": "RMSNorm"}, 2),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_whole_heads_go_with_all_queries_that_share_them(settings: dict, heads: int) -> None:
    model = drawn(**settings)
    graph = pk.trace(model, TOKENS)
    group = graph.group("q")
    assert (group.size, group.prunable) == (heads, True)
    keep = [0, heads - 1] if heads > 2 else [1]
    small = pk.slim(model, pk.ChannelPlan.from_keep(graph, {"q": keep}))
    queries, share = heads * WIDTH * model.shared, len(keep) / heads
    assert small.get_submodule("q").out_features == queries * share
    assert small.get_submodule("k").out_features == heads * WIDTH * share
    without = copy.deepcopy(model)  # what a head gives is nothing where no one reads it
    gone = [head for head in range(heads) if head not in keep]
    with torch.no_grad():
        columns = without.o.weight.view(32, heads, -1)
        columns[:, gone] = 0
        torch.testing.assert_close(small(TOKENS), without(TOKENS), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(small(TOKENS), model(TOKENS), atol=1e-3)


def test_channels_of_a_head_that_is_turned_stay_and_the_reason_names_the_norm() -> None:
    graph = pk.trace(drawn(norm="LayerNorm"), TOKENS)
    assert graph.group("norm").reason == (
        "it meets the channels of all heads alike in norm (LayerNorm)"
    )
