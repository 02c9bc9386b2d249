"""Attention heads that become narrower: the scale of the scores stays as it was."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit.core.plan import Scaled as Scaling
from prunekit.core.role import OUT
from prunekit.networks.slimming import cut_axes
from prunekit.support.errors import UsageError
from support.nets import randomise

TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """Two heads of four channels; the scores' scale is the operator's own."""

    scale: float | None = None
    width: int = -1

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.embed, self.qkv, self.project = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(4) if norm else nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 2, self.width).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.norm(q), k, v, scale=self.scale)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, count, -1))
        out: torch.Tensor = self.head(x.mean(1))
        return out


class Scaled(Attention):
    scale = 0.5


class Literal(Attention):
    width = 4


def narrowed(model: nn.Module) -> tuple[nn.Module, pk.ChannelPlan]:
    graph = pk.trace(model, TOKENS, heads="width")
    plan = pk.ChannelPlan.from_keep(graph, {"qkv": [0, 2, 3], "embed": [1, 2, 4, 5, 7]})
    return pk.slim(model, plan), plan


@pytest.mark.parametrize("kind", [Attention, Scaled])
def test_the_same_channels_go_from_every_head(kind: type[Attention]) -> None:
    model = randomise(kind())
    small, plan = narrowed(model)
    assert isinstance(small, kind)
    assert (small.qkv.out_features, small.project.in_features) == (18, 6)
    assert plan.cuts["qkv"].out == tuple(range(1, 24, 4))
    masked = pk.mask_(copy.deepcopy(model), plan)
    torch.testing.assert_close(small(TOKENS), masked(TOKENS), rtol=1e-5, atol=1e-6)


def test_only_queries_make_up_for_the_scale() -> None:
    model = randomise(Attention())
    small, plan = narrowed(model)
    (part,) = plan.cuts["qkv"].scaled
    assert part.rows == (0, 2, 3, 4, 6, 7)
    assert part.factor == pytest.approx((3 / 4) ** 0.5)
    kept = [row for row in range(24) if row % 4 != 1]
    channels = [1, 2, 4, 5, 7]
    factors = torch.tensor([part.factor] * 6 + [1.0] * 12)
    expected = model.qkv.weight[kept][:, channels] * factors[:, None]
    torch.testing.assert_close(small.qkv.weight, expected)
    torch.testing.assert_close(small.qkv.bias, model.qkv.bias[kept] * factors)
    assert narrowed(randomise(Scaled()))[1].cuts["qkv"].scaled == ()
    assert cut_axes(model.qkv, plan.cuts["qkv"], "qkv")["bias"] == {0: plan.cuts["qkv"].out}


def test_the_slim_network_is_one_of_the_users_own_with_narrower_heads() -> None:
    """What the state dict holds is right for code that knows nothing of the removal."""
    model = randomise(Attention())
    small, plan = narrowed(model)
    own = Attention()
    own.embed, own.qkv, own.project = nn.Linear(6, 5), nn.Linear(5, 18), nn.Linear(6, 5)
    own.head = nn.Linear(5, 3)
    own.load_state_dict(small.state_dict())
    masked = pk.mask_(copy.deepcopy(model), plan)
    torch.testing.assert_close(own(TOKENS), masked(TOKENS), rtol=1e-5, atol=1e-6)


def test_plans_on_disk_keep_the_factors(tmp_path: Path) -> None:
    model = randomise(Attention())
    small, plan = narrowed(model)
    plan.save(tmp_path / "plan.json")
    again = pk.ChannelPlan.load(tmp_path / "plan.json")
    assert again == plan
    torch.testing.assert_close(pk.slim(model, again)(TOKENS), small(TOKENS), rtol=0, atol=0)
    cut = replace(plan.cuts["qkv"], scaled=(Scaling((3, 2), 0.5),))
    replace(plan, cuts={"qkv": cut}).save(tmp_path / "plan.json")
    with pytest.raises(pk.PrunekitError, match="ascending"):
        pk.ChannelPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Attention(norm=True), "follows the width of its heads"), (Literal(), "the slim network")],
)
def test_what_cannot_be_made_up_for_stays(model: nn.Module, reason: str) -> None:
    graph = pk.trace(randomise(model), TOKENS, heads="width")
    groups = [g for g in graph.groups if any(m.module == "qkv" for m in g.members)]
    written = [g for g in groups if any((m.module, m.role) == ("qkv", OUT) for m in g.members)]
    assert written
    assert all(reason in group.reason for group in written)
    assert graph.group("embed").prunable


def test_whole_heads_by_default() -> None:
    graph = pk.trace(Attention(), TOKENS)
    assert not any(member.role.scaled for g in graph.groups for member in g.members)


def test_refused() -> None:
    with pytest.raises(UsageError, match="`heads` must be whole or width, not 'half'"):
        pk.trace(Attention(), TOKENS, heads="half")
    graph = pk.trace(Attention(), TOKENS, heads="width")
    budget, schedule = pk.Budget.parse("macs=50%"), pk.IEESchedule(steps=100)
    with pytest.raises(UsageError, match="IEE removes whole heads of attentions only"):
        pk.IEE(Attention(), graph, None, budget, schedule=schedule)
