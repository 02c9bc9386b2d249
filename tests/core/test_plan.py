"""Plans: channels that are kept, cuts of every layer, files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit as pk
from prunekit.core.plan import ChannelPlan, Cut, geometric_budgets
from prunekit.core.role import OUT, Role
from prunekit.core.scores import Scores
from prunekit.support.errors import FileError, UsageError
from support.nets import Plain, Residual, image


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual(), image())


def test_cuts_cover_every_coupled_module(graph):
    plan = ChannelPlan.from_keep(graph, {"stem": [0, 1, 2, 5, 6, 7]})
    gone = (3, 4)
    assert plan.cuts == {
        "bn": Cut(gone, gone),
        "bn2": Cut(gone, gone),
        "conv1": Cut((), gone),
        "conv2": Cut(gone, ()),
        "fc": Cut((), gone),
        "stem": Cut(gone, ()),
    }
    assert plan.widths == {"stem": 6, "conv1": 8, "fc": 4}
    assert not plan.is_dense


@pytest.mark.parametrize("keep", [[], [8], [-1, 2]])
def test_impossible_channels_are_refused(graph, keep):
    with pytest.raises(UsageError, match="group 'stem' has channels 0 to 7"):
        ChannelPlan.from_keep(graph, {"stem": keep})


@pytest.mark.parametrize(
    ("keep", "hint"),
    [
        (torch.arange(8) % 2 == 0, r"; of a mask take mask\.nonzero\(\)\[:, 0\]"),
        ([True] * 8, "; of a mask"),
        ([0.9, 1.5], "$"),
        (4, "$"),
    ],
)
def test_channels_are_whole_numbers(graph, keep, hint):
    with pytest.raises(UsageError, match=f"group 'stem' must keep a list of channel numbers{hint}"):
        ChannelPlan.from_keep(graph, {"stem": keep})
    for good in (torch.tensor([1, 3]), np.array([1, 3]), range(1, 4, 2)):
        assert ChannelPlan.from_keep(graph, {"stem": good}).keep["stem"] == (1, 3)
    with pytest.raises(UsageError, match=r"width 7\.5 of group 'stem' must be a whole number"):
        ChannelPlan.from_widths(graph, {"stem": 7.5})
    with pytest.raises(UsageError, match="`granularity` must be at least 1, not 0"):
        ChannelPlan.random(graph, 0.5, granularity=0)


def test_what_is_of_another_model_is_refused(graph):
    plan, other = ChannelPlan.random(graph, 0.5, seed=3), pk.trace(Plain(), image())
    for use in (
        lambda: pk.mask_(Plain(), plan),
        lambda: pk.predict(other, plan, None),
        lambda: pk.explain(other, plan, None),
        lambda: pk.score(Plain(), graph, pk.Magnitude()),
    ):
        with pytest.raises(UsageError, match=r"is for another model \(fingerprint "):
            use()


def test_frozen_groups_are_refused_with_the_reason(graph):
    with pytest.raises(UsageError, match="'fc' cannot be pruned: it is the model's output"):
        ChannelPlan.from_keep(graph, {"fc": [0, 1]})
    with pytest.raises(UsageError, match=r"width 9 of group 'stem' is not in 1\.\.8"):
        ChannelPlan.from_widths(graph, {"stem": 9})


def test_widths_keep_the_best_channels(graph):
    scores = Scores({"stem": np.array([1.0, 5, 2, 5, 0, 9, 3, 4])}, "test")
    plan = ChannelPlan.from_widths(graph, {"stem": 4}, scores)
    assert plan.keep["stem"] == (1, 3, 5, 7)
    assert ChannelPlan.from_widths(graph, {"stem": 3}).keep["stem"] == (0, 1, 2)
    assert scores.ranking("stem").tolist() == [5, 1, 3, 7, 6, 2, 0, 4]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(0.05, 1.0), st.integers(0, 99), st.sampled_from([1, 2, 4, 16]))
def test_random_plans_keep_to_the_granularity_and_repeat(graph, keep, seed, granularity):
    plan = ChannelPlan.random(graph, keep, seed, granularity)
    assert plan == ChannelPlan.random(graph, keep, seed, granularity)
    for name, width in plan.widths.items():
        assert width in graph.group(name).widths(granularity)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_random_plans_need_a_fraction(graph, keep):
    with pytest.raises(UsageError, match=r"`keep` must be in \(0, 1\]"):
        ChannelPlan.random(graph, keep)


def test_plans_survive_the_disk(graph, tmp_path):
    plan = ChannelPlan.random(graph, 0.5, seed=3)
    plan.save(tmp_path / "plan.json")
    assert ChannelPlan.load(tmp_path / "plan.json") == plan


def test_an_impossible_plan_file_is_named(graph, tmp_path):
    path = tmp_path / "plan.json"
    for keep in ((), (0, 0), (8,), (-1,)):
        plan = ChannelPlan.random(graph, 0.5, seed=3)
        ChannelPlan(plan.fingerprint, plan.keep | {"stem": keep}, plan.cuts, plan.sizes).save(path)
        with pytest.raises(FileError, match=r"plan\.json: group 'stem' keeps channels it does not"):
            ChannelPlan.load(path)


@pytest.mark.parametrize("positions", [(1, 1), (2, 1), (-1, 0)])
def test_impossible_cuts_in_a_plan_file_are_named(graph, tmp_path, positions):
    path, plan = tmp_path / "plan.json", ChannelPlan.random(graph, 0.5, seed=3)
    for cut in (Cut(positions, ()), Cut((), positions)):
        replace(plan, cuts=plan.cuts | {"conv1": cut}).save(path)
        with pytest.raises(FileError, match=r"plan\.json: the cut of 'conv1' is not a list of asc"):
            ChannelPlan.load(path)


def test_geometric_budgets_end_where_they_should():
    steps = geometric_budgets(1.0, 0.3, 5)
    assert steps[-1] == pytest.approx(0.3)
    ratios = np.diff(np.log([1.0, *steps]))
    assert ratios == pytest.approx(np.log(0.3) / 5)


def test_a_plan_with_a_cut_nowhere_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    cut = Cut((0,), (), {Role.of_tensor("gamma", 0): (1,), Role.of_number("num_heads"): (2,)})
    plan = ChannelPlan("f", {"g": (0,)}, {"m": cut}, {"g": 2})
    plan.save(path)
    assert ChannelPlan.load(path) == plan
    for role in (OUT, Role.of_tensor("", 0)):
        replace(plan, cuts={"m": Cut((0,), (), {role: (1,)})}).save(path)
        with pytest.raises(FileError, match=rf"is not a valid plan: .*'{role}' is "):
            ChannelPlan.load(path)
