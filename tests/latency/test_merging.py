"""Tables joined: sets, in any order; others refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.core.target import Environment, Target
from prunekit.latency import merge
from prunekit.support.errors import TableError
from support.commands import Says
from support.tables import made, predicted, profile, text

TABLES = st.builds(made, st.integers(0, 9), st.integers(1, 4))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(TABLES, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_merging_is_joining_sets(tables, random):
    """In any order, in any steps, however often one comes."""
    whole = merge(tables)
    shuffled = [*tables, random.choice(tables)]
    random.shuffle(shuffled)
    assert text(merge(shuffled)) == text(whole)
    cut = random.randrange(1, len(tables))
    assert text(merge([merge(tables[:cut]), merge(tables[cut:])])) == text(whole)
    assert text(merge([whole, *tables[:1]])) == text(whole)
    assert text(merge([whole])) == text(whole)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(TABLES, min_size=1, max_size=4))
def test_nothing_is_lost_in_a_merge_and_nothing_made_up(tables):
    whole = merge(tables)

    def measured(table):
        """Every network with its samples, by what was measured."""
        rows: list[list[object]] = [[] for _ in table.networks]
        for entry in table.entries:
            for sample in entry.samples:
                rows[sample.net].append((str(entry.shape), replace(sample, net=0)))
        return [
            (replace(small_net, session=""), tuple(sorted(row, key=repr)))
            for small_net, row in zip(table.networks, rows, strict=True)
        ]

    distinct = {text(table): table for table in tables}.values()
    assert Counter(measured(whole)) == Counter(one for table in distinct for one in measured(table))
    assert {*whole.models} == {table.models[0] for table in tables}
    assert whole.protocol.nets == len(whole.networks)
    assert whole.environment.created == max(table.environment.created for table in tables)
    assert whole.networks[0].kept == 1


def test_a_table_merged_with_itself_predicts_as_before(small_net, small_graph, device):
    one = profile(small_net, small_graph)
    both = merge([one, one])
    assert len(both.networks) == len(one.networks)
    assert predicted(both, small_graph) == pytest.approx(predicted(one, small_graph), rel=1e-9)
    assert both.calibration.nets == one.calibration.nets


def test_the_dense_network_of_every_model_is_in_all_fits():
    joined = merge([made(0, 4), made(1, 4)])
    assert [small_net.kept == 1 for small_net in joined.networks] == [True, True] + 6 * [False]
    assert joined.calibration.nets == 4  # nor is the fastest of a model left out


REFUSED = [
    (
        {"target": Target("fake", threads=2)},
        "target fake:cpu fp32, batch 1, 2 threads against fake:cpu fp32, batch 1, 1 thread",
    ),
    ({"environment": Environment("other", "1")}, "device name 'other' against 'device'"),
    ({"environment": Environment("device", "2")}, "runtime version '2' against '1'"),
    ({"environment": Environment("device", "1", driver="5")}, "driver '5' against ''"),
    ({"granularity": 16}, "granularity 16 against 8"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_other_tables_are_refused(change, message, prunekit: Says, tmp_path: Path):
    made(0, 4).save(tmp_path / "a.json")
    made(0, 4, **change).save(tmp_path / "b.json")
    out = tmp_path / "c.json"
    status, _, err = prunekit("table", "merge", tmp_path / "a.json", tmp_path / "b.json", "-o", out)
    assert status == 2
    assert err == (
        f"prunekit: cannot merge {tmp_path / 'b.json'} with {tmp_path / 'a.json'}: {message}; "
        "profile both alike, or compare them with `prunekit table diff`\n"
    )
    assert not out.exists()


def test_a_merge_keeps_that_a_device_was_unsteady():
    shaky = made(1, 4)
    shaky = replace(shaky, protocol=replace(shaky.protocol, drift=0.4, disturbed=0.1))
    joined = merge([made(0, 4), shaky])
    assert (joined.protocol.drift, joined.protocol.disturbed) == (0.4, 0.1)


def test_gpus_of_one_kind_share_a_table():
    numbered = [made(0, 4, target=Target("torch", f"cuda:{i}")) for i in (0, 1)]
    assert merge([*numbered, made(2, 4, target=numbered[0].target)]).target.device == "cuda"
    assert merge(numbered[:1]).target.device == "cuda:0"
    with pytest.raises(TableError, match="target torch:cpu"):
        merge([numbered[0], made(0, 4, target=Target("torch"))])


def test_an_error_that_is_not_known_is_not_zero(prunekit: Says, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prunekit.latency.shipped.FOLDERS", (tmp_path,))
    for number in range(2):
        made(number, 1).save(f"{number}.json")
    *merged, out = ("table", "merge", "0.json", "1.json", "-o", "a.json", "--json")
    assert json.loads(prunekit(*merged, out)[1])["mape"] is None
    shown = json.loads(prunekit("table", "show", "a.json", "--json")[1])["calibration"]
    assert (shown["mape"], shown["worst"], shown["nets"]) == (None, None, 0)
    listed = json.loads(prunekit("table", "list", "--json")[1])
    assert {(row["mape"], row["worst"]) for row in listed.values()} == {(None, None)}
    assert prunekit("table", "list")[1].count("unknown") == 6
