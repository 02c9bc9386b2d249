"""Graphs and plans: widths, cuts, files; and that the data half needs no torch."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from core_nets import Concat, Depthwise, Flatten, Plain, Residual, image, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekit as pk
from prunekit.core.graph import ChannelGroup, LayerShape, fingerprint
from prunekit.core.plan import ChannelPlan, Cut, geometric_budgets
from prunekit.core.role import BOTH, IN, OUT, SCALED_OUT, Role
from prunekit.core.scores import Scores
from prunekit.support.errors import FileError, ModelError, UsageError


def group(size, granularity=1, min_width=1, prunable=True):
    return ChannelGroup("g", size, granularity, min_width, prunable, ())


@settings(derandomize=True)
@given(
    st.integers(1, 70),
    st.sampled_from([1, 2, 3, 8, 16]),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 40),
)
def test_widths_are_multiples_or_everything(size, granularity, own, least):
    widths = group(size, own, least).widths(granularity)
    assert widths[-1] == size
    assert list(widths) == sorted(set(widths))
    step = np.lcm(granularity, own)
    assert all(w % step == 0 and w >= least for w in widths[:-1])
    assert group(size, own, least, prunable=False).widths(granularity) == (size,)


def test_layer_shapes_read_well():
    assert str(LayerShape("linear")) == "linear"
    shape = LayerShape("conv", (3, 3), (2, 2), (2, 2), 4, (56, 56), (28, 28), ("add", "relu"))
    assert str(shape) == "conv 3x3/2 dilation 2 groups 4 56x56->28x28 +add +relu"


def test_fingerprints_tell_names_shapes_and_order():
    base = [("a", (1, 2)), ("b", (3,))]
    prints = {
        fingerprint(base),
        fingerprint(base[::-1]),
        fingerprint([("a", (2, 1)), ("b", (3,))]),
        fingerprint([("a", (1, 2)), ("c", (3,))]),
    }
    assert len(prints) == 4
    assert fingerprint(base) == fingerprint(iter(base))


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual(), image())


def test_unknown_groups_list_known_ones(graph):
    with pytest.raises(UsageError, match=r"no channel group 'nope' .*groups: stem, conv1, fc"):
        graph.group("nope")
    with pytest.raises(UsageError, match="no channel group"):
        ChannelPlan.from_keep(graph, {"nope": [0]})


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (("stem",), {"conv1"}),
        (("conv2",), {"conv1"}),  # whose outputs are added to the stem's
        (("bn1",), {"stem"}),
        (("conv*",), set()),
        (("fc",), {"stem", "conv1"}),  # the model's output stays in any case
        ((), {"stem", "conv1"}),
    ],
)
def test_what_is_kept_is_not_prunable(graph, keep, left):
    found = graph.constrained(keep)
    assert {g.id for g in found.groups if g.prunable} == left
    for group in found.groups:
        assert group.reason or group.prunable
    if "stem" not in left:
        with pytest.raises(UsageError, match="'stem' cannot be pruned: kept whole, as asked for"):
            ChannelPlan.from_widths(found, {"stem": 4})


def test_a_module_stands_for_its_layers():
    net = nn.Sequential(Residual())
    found = pk.trace(net, image()).constrained(["0"])
    assert not any(group.prunable for group in found.groups)


def test_what_is_kept_has_to_be_there(graph):
    with pytest.raises(UsageError, match=r"'con', which matches no layer; layers: stem, conv1"):
        graph.constrained(["conv1", "con"])


def test_widths_have_a_floor(graph):
    found = graph.constrained(min_width=0.3)
    assert found.group("stem").widths() == (3, 4, 5, 6, 7, 8)
    assert found.smallest_widths(4) == {"stem": 4, "conv1": 4, "fc": 4}
    twice = found.constrained(min_width=0.1)  # what was asked for before stays
    assert twice.smallest_widths(1) == found.smallest_widths(1) == {"stem": 3, "conv1": 3, "fc": 4}
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="`min_width` must be from 0 to below 1"):
            graph.constrained(min_width=share)


def test_macs_count_what_the_layers_do(graph):
    full = 64 * 9 * (3 * 8 + 8 * 8 + 8 * 8) + 8 * 4
    assert graph.macs({}) == graph.macs(graph.dense_widths) == full
    assert graph.macs({"stem": 4, "conv1": 2}) == 64 * 9 * (3 * 4 + 4 * 2 + 2 * 4) + 4 * 4
    assert graph.prunable_macs_share() == 1.0


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


@pytest.mark.parametrize(
    ("values", "text"),
    [([1.0, np.nan], "are not finite"), ([1.0, np.inf], "are not finite"), ([1.0, -1], "negative")],
)
def test_scores_are_finite_and_not_negative(values, text):
    with pytest.raises(UsageError, match=f"taylor scores of group 'g' {text}|{text}"):
        Scores({"g": np.array(values)}, "taylor")


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


def test_slimming_refuses_what_does_not_fit(graph):
    plan = ChannelPlan.random(graph, 0.5, seed=3)
    with pytest.raises(
        UsageError, match=r"the plan is for another model \(fingerprint .* this Plain"
    ):
        pk.slim(Plain(), plan)
    model = Residual()
    for cut, text in (
        ({"ghost": Cut((0,))}, "the plan cuts 'ghost', which Residual does not have"),
        ({"stem": Cut((8,))}, "cannot remove channels 8 to 8 of 8"),
        ({"stem": Cut((-1,))}, "cannot remove channels -1 to -1 of 8"),
        ({"stem": Cut(tuple(range(8)))}, "cannot remove channels 0 to 7 of 8"),
    ):
        with pytest.raises(ModelError, match=text):
            pk.slim(model, ChannelPlan(plan.fingerprint, plan.keep, cut, plan.sizes))


@pytest.mark.parametrize("make", [Residual, Depthwise, Concat, Flatten])
def test_masks_zero_what_slimming_removes(make):
    model = randomise(make())
    graph = pk.trace(model, image())
    plan = ChannelPlan.random(graph, 0.5, seed=2)
    small = pk.slim(model, plan)
    masked = pk.mask_(model, plan)
    for name, tensor in masked.named_parameters():
        kept = small.get_parameter(name)
        if not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.PReLU):
            assert int((tensor != 0).sum()) == int((kept != 0).sum())
            assert torch.isclose(tensor.double().sum(), kept.double().sum(), atol=1e-6)


def test_geometric_budgets_end_where_they_should():
    steps = geometric_budgets(1.0, 0.3, 5)
    assert steps[-1] == pytest.approx(0.3)
    ratios = np.diff(np.log([1.0, *steps]))
    assert ratios == pytest.approx(np.log(0.3) / 5)


DATA_HALF = ("core", "support", "allocation", "allocation/solvers", "latency", "report")


def imported(code):
    script = f"import sys\n{code}\nprint([m for m in sys.modules if m.startswith('torch')])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1].replace("'", '"'))


def test_the_data_half_does_without_torch():
    import prunekit

    names = [
        f"prunekit.{room.replace('/', '.')}.{module.name}"
        for room in DATA_HALF
        for module in pkgutil.iter_modules([f"{prunekit.__path__[0]}/{room}"])
    ]
    assert len(names) > 50
    code = "\n".join(f"import {name}" for name in ["prunekit", "prunekit.cli.main", *names])
    assert imported(code) == []


def test_the_import_is_lazy_and_complete():
    assert imported("import prunekit; prunekit.Budget.parse('50%'); dir(prunekit)") == []
    assert len(pk.__all__) == len(set(pk.__all__))
    for name in pk.__all__:
        assert getattr(pk, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = pk.nope


def test_a_role_is_its_text_in_files():
    texts = ["out", "in", "both", "~out", "gamma.0", "relative.position.12", "#num_heads"]
    roles = [Role.parse(text) for text in texts]
    assert [str(role) for role in roles] == texts
    assert roles[:5] == [OUT, IN, BOTH, SCALED_OUT, Role.of_tensor("gamma", 0)]
    assert [role.is_output for role in roles] == [True, False, True, *[False] * 4]
    assert [role.makes_channels for role in roles] == [True, False, True, True, True, False, True]
    for text in ("", "#", "~in", "gamma", ".0", "gamma.x"):
        with pytest.raises(ValueError, match="is no role of channels in a module"):
            Role.parse(text)


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
