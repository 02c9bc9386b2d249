"""A pruned model on disk: bit-equal in another process, and safe to open."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunekit as pk
from prunekit import zoo
from prunekit.core.plan import ChannelPlan
from prunekit.networks import saved as runs
from prunekit.networks.build import is_library
from prunekit.support.errors import FileError, ModelError, UsageError
from prunekit.support.files import sha256_file
from support.nets import image, randomise

SPEC, ARGUMENTS = "zoo:resnet20", {"num_classes": 4, "in_channels": 3}
FACTORY = """
import pathlib
from torch import nn

pathlib.Path({mark!r}).write_text("executed")

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
"""


@pytest.fixture(scope="module")
def pruned():
    model = randomise(zoo.build("resnet20", **ARGUMENTS))
    graph = pk.trace(model, image(size=16))
    plan = pk.ChannelPlan.random(graph, 0.5, seed=1)
    return model, plan, pk.slim(model, plan)


@pytest.fixture
def run(pruned, tmp_path):
    _, plan, small = pruned
    pk.save(tmp_path / "run", small, plan, SPEC, ARGUMENTS, ((1, 3, 16, 16),))
    return tmp_path / "run"


def test_another_process_loads_the_same_bits(pruned, run, tmp_path):
    small = pruned[2]
    x = image(2, size=16)
    save_file({"x": x}, tmp_path / "x.safetensors")
    code = """
import sys, torch
import prunekit as pk
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
model = pk.load(sys.argv[1])
assert not model.training
x = load_file(sys.argv[2])["x"]
with torch.no_grad():
    save_file({"y": model(x), **model.state_dict()}, sys.argv[3])
"""
    files = [str(run), str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    found = load_file(tmp_path / "y.safetensors")
    with torch.no_grad():
        assert torch.equal(found.pop("y"), small.eval()(x))
    expected = small.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_on_disk(pruned, run):
    assert sorted(p.name for p in run.iterdir()) == ["model.safetensors", "plan.json"]
    plan = ChannelPlan.load(run / "plan.json")
    assert replace(plan, base=None) == pruned[1]
    assert plan.base.spec == SPEC
    assert plan.base.arguments == ARGUMENTS
    assert plan.base.input_shapes == ((1, 3, 16, 16),)
    assert set(plan.base.versions) == {"prunekit", "torch", "torchvision"}
    assert runs.is_run(run)
    assert not runs.is_run(run.parent)


def test_loading_takes_no_random_numbers(run):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    pk.load(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dense_model_may_be_given(pruned, run):
    model, _, small = pruned
    for given in (model, SPEC):
        loaded = pk.load(run, given)
        assert all(torch.equal(t, small.state_dict()[n]) for n, t in loaded.state_dict().items())


def test_another_model_is_refused_by_its_fingerprint(run, monkeypatch):
    other = zoo.build("resnet20_w32", **ARGUMENTS)
    with pytest.raises(UsageError, match=r"the plan is for another model \(fingerprint"):
        pk.load(run, other)
    with pytest.raises(UsageError, match="the plan is for another model"):
        pk.load(run, "zoo:resnet56")
    build = zoo.build
    monkeypatch.setattr(zoo, "build", lambda name, **a: build("resnet56", **a))
    with pytest.raises(
        ModelError, match=r"zoo:resnet20 is not built here as it was when .* differs"
    ):
        pk.load(run)


def test_damaged_and_edited_files_are_named(run):
    weights, plan = run / "model.safetensors", run / "plan.json"
    good = weights.read_bytes()
    for bad in (good[: len(good) // 2], b"", good[:-1] + bytes([good[-1] ^ 1])):
        weights.write_bytes(bad)
        with pytest.raises(FileError, match=r"model\.safetensors was edited or damaged"):
            pk.load(run)
    weights.unlink()
    with pytest.raises(FileError, match=r"no model\.safetensors in .*run; is it a finished run"):
        pk.load(run)
    weights.write_bytes(good)
    text = plan.read_text()
    plan.write_text(text.replace(SPEC, "zoo:vgg11_bn"))
    with pytest.raises(FileError, match=r"plan\.json was edited or damaged"):
        pk.load(run)
    plan.write_text(text[:100])
    with pytest.raises(FileError, match=r"plan\.json is truncated or not JSON"):
        pk.load(run)
    plan.unlink()
    with pytest.raises(FileError, match=r"cannot read plan .*plan\.json: No such file"):
        pk.load(run)


def test_weights_of_another_network_are_named(pruned, run):
    """Even when the checksum was made to fit them."""
    model, plan, small = pruned
    pk.save(run, small, plan, SPEC, ARGUMENTS)
    runs.save_weights(model, run / "model.safetensors")
    record = replace(
        ChannelPlan.load(run / "plan.json").base,
        weights_sha256=sha256_file(run / "model.safetensors"),
    )
    replace(plan, base=record).save(run / "plan.json")
    with pytest.raises(FileError, match=r"model\.safetensors does not fit _ResNet: "):
        pk.load(run)


def test_what_cannot_be_loaded_again_is_not_saved(pruned, tmp_path):
    run, (model, plan, small) = tmp_path / "run", pruned
    with pytest.raises(UsageError, match=r"_ResNet is the dense network; save pk\.slim"):
        pk.save(run, model, plan, SPEC, ARGUMENTS)
    with pytest.raises(
        UsageError, match=r"the plan cuts '[a-z0-9.]+', which DataParallel does not have"
    ):
        pk.save(run, torch.nn.DataParallel(small), plan, SPEC, ARGUMENTS)
    with pytest.raises(UsageError, match="`plan` must be a ChannelPlan or a SparsityPlan, not N"):
        pk.save(run, small, None, SPEC, ARGUMENTS)
    assert not run.exists()
    strange = copy.deepcopy(small)
    own = {"get_extra_state": lambda _: {"epoch": 3}}
    strange.__class__ = type("Strange", (type(small),), own)
    with pytest.raises(ModelError, match="has _extra_state, which is no tensor and cannot be save"):
        pk.save(run, strange, plan, SPEC, ARGUMENTS)


def test_compiled_networks_and_their_precision_are_saved(pruned, run):
    _, plan, small = pruned
    for dtype in (torch.bfloat16, torch.float64):
        held = copy.deepcopy(small).to(dtype)
        pk.save(run, torch.compile(held), plan, SPEC, ARGUMENTS)
        back = pk.load(run)
        assert all(torch.equal(t, back.state_dict()[n]) for n, t in held.state_dict().items())
        assert {p.dtype for p in back.parameters()} == {dtype}


def test_a_channel_plan_takes_the_place_of_a_sparse_network(pruned, run):
    model, plan, small = pruned
    dense = copy.deepcopy(model)
    sparse = pk.sparsify.Static(dense, 0.5)
    pk.save(run, dense, sparse.plan, SPEC, ARGUMENTS)
    assert runs.is_sparse(run)
    pk.save(run, small, plan, SPEC, ARGUMENTS)
    assert not runs.is_sparse(run)
    pk.load(run)


def test_a_factory_is_not_executed_by_opening_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    for source in ("net.py", "torchvision:/net.py", "timm:x/net.py"):
        (tmp_path / source).parent.mkdir(exist_ok=True)
        (tmp_path / source).write_text(FACTORY.format(mark=str(mark)))
    (tmp_path / "net.py").write_text(FACTORY.format(mark=str(mark)))
    spec = "net.py:make"
    model = runs.open_model(spec).module
    mark.unlink()
    graph = pk.trace(model, image())
    plan = pk.ChannelPlan.random(graph, 0.5, seed=1)
    small = pk.slim(model, plan)
    for trick in (
        spec,
        "torchvision:/net.py:make",
        "timm:x/net.py:make",
        "os:system",
        "zoo:os:system",
    ):
        pk.save("run", small, plan, trick)
        with pytest.raises(UsageError, match="is code that a file may not start by itself; pass"):
            pk.load("run")
        assert not mark.exists()
    assert pk.load("run", spec).training is False
    assert mark.exists()


def test_which_specs_are_safe():
    assert all(map(is_library, ("torchvision:resnet18", "timm:x", "zoo:resnet20")))
    for spec in ("resnet18", "a.py:f", "torchvision:a.py:f", "torchvisions:x", "zoo", "a:zoo:b"):
        assert not is_library(spec)


def test_a_failed_save_leaves_the_old_run(pruned, run, monkeypatch):
    from safetensors import SafetensorError

    before = {p.name: p.read_bytes() for p in run.iterdir()}

    def full(*args):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(runs, "save_file", full)
    with pytest.raises(FileError, match=r"cannot write .*model\.safetensors: .*No space left"):
        pk.save(run, pruned[2], pruned[1], SPEC)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_folders_that_are_no_runs(tmp_path, run):
    with pytest.raises(ModelError, match=r"is a folder without plan\.json, not a finished run"):
        runs.open_model(str(tmp_path))
    with pytest.raises(UsageError, match="`--pretrained` does not go with the run folder"):
        runs.open_model(str(run), pretrained=True)
    assert runs.open_model(str(run)).spec == str(run)
    plan = json.loads((run / "plan.json").read_text())
    assert plan["base"]["weights_sha256"]
    replace(pk.ChannelPlan.load(run / "plan.json"), base=None).save(run / "plan.json")
    with pytest.raises(FileError, match="does not say which model it is for; pass `model`"):
        pk.load(run)


@pytest.fixture
def twice(pruned, run, monkeypatch):
    """A run pruned from ``run``, saved with a path from the working directory."""
    once = pruned[2]
    plan = pk.ChannelPlan.random(pk.trace(once, image(size=16)), 0.6, seed=2)
    monkeypatch.chdir(run.parent)
    pk.save("deep/twice", pk.slim(once, plan), plan, "run", {}, ((1, 3, 16, 16),))
    return run.parent / "deep" / "twice"


def test_a_run_of_a_run_is_found_from_anywhere(run, twice, tmp_path, monkeypatch):
    assert ChannelPlan.load(twice / "plan.json").base.spec == "run:../../run"
    expected = load_file(twice / "model.safetensors")
    monkeypatch.chdir("/")
    for path in (twice, os.path.relpath(twice)):
        loaded = pk.load(path).state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in loaded.items())
    for model in (str(run), SPEC, pk.load(run)):  # the base itself, or what that was made from
        assert pk.load(twice, model).state_dict().keys() == expected.keys()
    assert runs.open_model(str(twice)).spec == str(twice)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(FileError, match=rf"base run {run.resolve()} of {twice} not found; put it"):
        pk.load(twice)
    assert pk.load(twice, str(tmp_path / "moved")).state_dict().keys() == expected.keys()


def test_a_run_that_is_its_own_base_is_damaged(run, twice):
    for spec in ("run:.", "run:../deep/twice"):
        plan = ChannelPlan.load(run / "plan.json")
        replace(plan, base=replace(plan.base, spec=spec)).save(run / "plan.json")
        for path in (run, twice):
            with pytest.raises(FileError, match=r"plan\.json is damaged: .* made from itself"):
                pk.load(path)


def test_a_run_of_a_run_does_not_start_code_either(run, twice):
    plan = ChannelPlan.load(run / "plan.json")
    replace(plan, base=replace(plan.base, spec="os:system")).save(run / "plan.json")
    with pytest.raises(UsageError, match="run was made from 'os:system', which is code"):
        pk.load(twice)


def slimmed_twice():
    model = randomise(zoo.build("resnet20", **ARGUMENTS))
    first = pk.ChannelPlan.random(pk.trace(model, image(size=16)), 0.7, seed=0)
    once = pk.slim(model, first)
    second = pk.ChannelPlan.random(pk.trace(once, image(size=16)), 0.7, seed=1)
    return model, first, second, pk.slim(once, second)


def test_two_plans_of_one_base_are_one(tmp_path):
    model, first, second, twice = slimmed_twice()
    both = first.then(second)
    assert both.widths == second.widths
    at_once = pk.slim(model, both)
    state = twice.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in at_once.state_dict().items())
    pk.save(tmp_path / "run", twice, both, SPEC, ARGUMENTS)
    with torch.no_grad():
        assert torch.equal(pk.load(tmp_path / "run")(image(size=16)), twice.eval()(image(size=16)))
    with pytest.raises(UsageError, match="the second plan is not of the network that the first"):
        second.then(first)


def test_a_plan_of_another_network_than_the_base_is_not_saved(tmp_path):
    _, first, second, twice = slimmed_twice()
    with pytest.raises(
        UsageError, match=r"not of zoo:resnet20 as it is .*first_plan\.then\(second"
    ):
        pk.save(tmp_path / "run", twice, second, SPEC, ARGUMENTS)
    assert not [*tmp_path.rglob("*.*")]
    with pytest.raises(
        UsageError, match=r"the plan is not of zoo:resnet20 as it is built with \{'nu"
    ):
        pk.save(tmp_path / "run", twice, first.then(second), SPEC, {"num_classes": 5})
