"""What scoring promises: no trace left, gaps named, options checked, a third party's criterion."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.criteria import Accumulator
from prunekit.criteria.base import normalise
from prunekit.support import registry
from prunekit.support.errors import UsageError
from prunekit.support.registry import Registry, criteria
from support.nets import (
    Residual,
    image,
    randomise,
)
from support.scoring import (
    FIRST,
    NAMES,
    NO_DATA,
    batches,
    channels_of,
    linear,
    loss_fn,
    norm,
    scored,
)


def test_scoring_leaves_everything_as_it_was():
    model = randomise(Residual()).double().train()
    model.bn1.eval()  # a norm that its owner froze
    model.conv1.weight.requires_grad_(False)
    graph = pk.trace(model, image().double())
    loss_fn(model, batches()[0]).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for criterion in (pk.Taylor(), pk.Magnitude()):
        pk.score(model, graph, criterion, loss_fn, batches())
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        assert all(p.grad is gradients[n] for n, p in model.named_parameters())
        assert model.training
        assert model.bn.training
        assert not model.bn1.training
        assert not model.conv1.weight.requires_grad
        assert model.conv2.weight.requires_grad


def test_scoring_that_fails_leaves_everything_as_it_was():
    model = randomise(Residual()).train()
    graph = pk.trace(model, image())

    def broken(model, batch):
        raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch"):
        pk.score(model, graph, pk.Taylor(), broken, [None])
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_scoring_works_under_no_grad_and_with_frozen_parameters():
    model = randomise(Residual()).double()
    graph = pk.trace(model, image().double())
    expected = pk.score(model, graph, pk.Taylor(), loss_fn, batches()).by_group
    model.requires_grad_(False)
    with torch.no_grad():
        found = pk.score(model, graph, pk.Taylor(), loss_fn, batches()).by_group
    assert all((found[g] == expected[g]).all() for g in expected)


def test_what_is_missing_is_named():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    with pytest.raises(UsageError, match="'taylor' needs data: give `loss_fn` and `batches`"):
        pk.score(model, graph, pk.Taylor())
    with pytest.raises(UsageError, match=r"no gradient for bn\.weight, .* no backward pass"):
        Accumulator(graph, pk.Taylor()).add(model)
    with pytest.raises(UsageError, match="no batch was scored"):
        pk.score(model, graph, pk.Taylor(), loss_fn, [])
    with pytest.raises(UsageError, match="`p` must be 1 or 2, not 3"):
        pk.Magnitude(p=3)
    with pytest.raises(UsageError, match="`normalize` must be mean, max, share or none, not 'sum'"):
        pk.Magnitude(normalize="sum")


@pytest.mark.parametrize(("normalize", "divisor"), [("mean", 8 / 3), ("max", 5), ("none", 1)])
@pytest.mark.parametrize("name", ["magnitude", "bn_scale"])
def test_normalisation(name, normalize, divisor):
    modules = {"a": linear(FIRST), "bn": norm([5.0, -1.0, 2.0])}
    group = channels_of("a", "bn", roles=["out", "both"])
    found = scored(criteria.get(name)(normalize=normalize), group, modules)
    assert found == pytest.approx(np.array([5, 1, 2]) / divisor)


def test_channels_of_half_precision():
    for name in NO_DATA:
        for dtype in (torch.float16, torch.bfloat16):
            found = scored(criteria.get(name)(), channels_of("a"), {"a": linear(FIRST).to(dtype)})
            assert found[0] > 0
            assert np.isfinite(found).all()


def test_weights_that_are_not_numbers_are_refused():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    with torch.no_grad():
        model.conv1.weight[2, 0, 0, 0] = float("nan")
    for name in ("magnitude", "magnitude_l1", "lamp", "fpgm"):
        with pytest.raises(UsageError, match=f"^{name} scores are not finite; check the loss"):
            pk.score(model, graph, criteria.get(name)())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("random", "taylor")])
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [("reduce", "min", "mean, sum or max"), ("normalize", "sum", "mean, max, share or none")],
)
def test_options_that_no_criterion_has_are_refused(name, option, value, allowed):
    text = f"^criterion {name}: `{option}` must be {allowed}, not '{value}'$"
    with pytest.raises(UsageError, match=text):
        criteria.get(name)(**{option: value})


def test_other_options_are_refused_too():
    text = "^criterion taylor_weight: `form` must be abs, square or joint, not 'signed'$"
    with pytest.raises(UsageError, match=text):
        pk.TaylorWeight(form="signed")
    for seed in (-1, 0.5, "a", None):
        text = f"^criterion random: `seed` must be a whole number from 0, not {seed!r}$"
        with pytest.raises(UsageError, match=text):
            pk.Random(seed=seed)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "taylor"])
def test_a_group_that_nothing_writes_is_refused(name):
    group = channels_of("act", "reader", roles=["both", "in"])
    modules = {"act": nn.PReLU(3), "reader": linear(FIRST)}
    with pytest.raises(UsageError, match=r"^no layer with a weight writes .* group 'g', .* again$"):
        criteria.get(name)().channel_scores(group, modules)


THIRD_PARTY = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Backwards:
    name: str = "backwards"
    needs_gradients: bool = False

    def channel_scores(self, group, modules):
        return torch.arange(group.size)

    def normalised(self, scores):
        return scores / scores.max()
"""


@pytest.mark.parametrize("way", ["entry point", "register"])
def test_a_third_partys_criterion_works_like_the_others(way, tmp_path, monkeypatch):
    (tmp_path / "others_criteria.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "others_criteria", raising=False)
    entries = []
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    plugins = Registry("criteria")
    if way == "entry point":
        value = "others_criteria:Backwards"
        entries.append(EntryPoint("backwards", value, "prunekit.criteria"))
    else:
        import others_criteria

        plugins.register("backwards", others_criteria.Backwards)
    model = randomise(Residual())
    graph = pk.trace(model, image())
    scores = pk.score(model, graph, plugins.get("backwards")())
    found = pk.allocate(graph, scores, None, pk.Budget.parse("macs=50%"))
    assert scores.criterion == "backwards"
    assert 0 < found.cost <= found.limit
    for group in ("stem", "conv1"):
        width = found.widths[group]
        assert found.plan.keep[group] == tuple(range(8 - width, 8))
    assert not found.plan.is_dense


def test_shares_are_counted_among_what_is_at_least_as_good():
    found = normalise(np.array([4.0, 0.0, 1.0, 3.0, 1.0]), "share")
    assert found == pytest.approx([1.0, 0.0, 1 / 9, 3 / 7, 1 / 9])
    assert normalise(np.zeros(3), "share").tolist() == [0, 0, 0]


def test_a_criterion_is_made_from_text_with_its_options():
    made = criteria.make("magnitude:p=1,normalize=none")
    assert (made.p, made.normalize) == (1, "none")
    assert criteria.make("taylor") == pk.Taylor()
    with pytest.raises(UsageError, match="`normalize` must be mean, max, share or none"):
        criteria.make("taylor:normalize=sum")
    with pytest.raises(UsageError, match=r"criteria name 'taylor': .* unexpected keyword .*beauty"):
        criteria.make("taylor:beauty=1")
    with pytest.raises(UsageError, match="write taylor:option=value"):
        criteria.make("taylor:normalize")
