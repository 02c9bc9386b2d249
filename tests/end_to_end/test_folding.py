"""Networks with branches from a table to a run that another process loads."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunekit as pk
from prunekit import zoo
from prunekit.core.plan import ChannelPlan
from prunekit.networks.folding import folded_blocks
from prunekit.pipeline.job import open_dense
from prunekit.pipeline.recipes.prune import make_recipe
from prunekit.support import files as serialize
from prunekit.support.errors import UsageError
from prunekit.tracing.trace import model_fingerprint
from support import TESTS, rep_nets
from support.commands import SHAPE, Says
from support.folding import BLOCKS, images, outputs, same
from support.rep_nets import Network, lively

FILE = rep_nets.__file__
NET = f"{FILE}:net"
FAST = (*SHAPE, "--target", "fake")
NOTE = "note: folded 3 blocks with branches for deployment, first of all; --no-reparameterize"


# --- run folders


@pytest.fixture(scope="module")
def pruned():
    folded = pk.reparameterize(rep_nets.net())
    graph = pk.trace(folded, images()[:1])
    plan = ChannelPlan.random(graph, 0.5, seed=1)
    assert len(plan.cuts) > 3
    return folded, plan, pk.slim(folded, plan).eval()


@pytest.fixture
def run(pruned, tmp_path):
    _, plan, small = pruned
    pk.save(tmp_path / "run", small, plan, NET, {}, ((1, 1, 8, 8),))
    return tmp_path / "run"


def test_loading_folds_the_dense_model(pruned, run):
    folded, _, small = pruned
    assert ChannelPlan.load(run / "plan.json").base.reparameterized
    unfolded = rep_nets.net()
    before, rng = copy.deepcopy(unfolded), torch.get_rng_state()
    for given in (unfolded, folded, NET):
        loaded = pk.load(run, given)
        assert same(loaded, small)
        assert torch.equal(outputs(loaded, images()), outputs(small, images()))
    assert same(unfolded, before)
    assert torch.equal(torch.get_rng_state(), rng)


def test_another_model_is_refused(run):
    with pytest.raises(UsageError, match="the plan is for another model"):
        pk.load(run, Network(width=16))
    with pytest.raises(UsageError, match="the plan is for another model"):
        pk.load(run, nn.Linear(2, 2))


def test_a_plan_from_before_folding_was_recorded(tmp_path):
    model = rep_nets.net()
    plan = ChannelPlan.random(pk.trace(model, images()[:1]), 0.5, seed=1)
    small = pk.slim(model, plan).eval()
    pk.save(tmp_path, small, plan, NET)
    raw = json.loads((tmp_path / "plan.json").read_text())
    assert raw["base"].pop("reparameterized") is False
    content = {key: raw[key] for key in raw.keys() - {"prunekit", "version", "sha256"}}
    raw["sha256"] = serialize._digest(content)
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    assert ChannelPlan.load(tmp_path / "plan.json").base.reparameterized is False
    assert same(pk.load(tmp_path, rep_nets.net()), small)


def test_a_library_model_is_loaded_in_another_process(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    small = pk.reparameterize(timm.create_model("repvgg_a0", num_classes=3)).eval()
    plan = ChannelPlan(model_fingerprint(small), {}, {}, {})
    pk.save(tmp_path, small, plan, "timm:repvgg_a0", {"num_classes": 3})
    save_file({"x": images(32, 3)}, tmp_path / "x.safetensors")
    code = """
import sys, torch
import prunekit as pk
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
x = load_file(sys.argv[1] + "/x.safetensors")["x"]
with torch.no_grad():
    save_file({"y": pk.load(sys.argv[1])(x)}, sys.argv[1] + "/y.safetensors")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    found = load_file(tmp_path / "y.safetensors")["y"]
    assert torch.equal(found, outputs(small, images(32, 3)))


# --- the command line


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inspect(prunekit: Says, home):
    status, out, err = prunekit("inspect", NET, *SHAPE, "--json")
    assert (status, err.splitlines()) == (0, [f"{NOTE} keeps them"])
    found = json.loads(out)
    assert found["folded_blocks"] == list(BLOCKS)
    assert [layer["name"] for layer in found["layers"]] == [*(f"{b}.merged" for b in BLOCKS), "fc"]
    status, out, err = prunekit("inspect", NET, *SHAPE, "--json", "--no-reparameterize")
    assert (status, err) == (0, "")
    assert len(json.loads(out)["layers"]) == 7
    assert json.loads(out)["folded_blocks"] == []
    _, _, err = prunekit("inspect", NET, *SHAPE, "-v")
    assert err.splitlines()[1] == f"note: folded: {', '.join(BLOCKS)}"
    assert prunekit("inspect", NET, *SHAPE, "-q", "--json")[2] == ""


@pytest.mark.parametrize("command", ["inspect", "profile", "prune"])
def test_a_block_that_fails_is_one_line(prunekit: Says, home, command):
    target = () if command == "inspect" else ("--target", "fake", "-o", "made")
    for name, said in (("broken", "cannot fold stem (Broken)"), ("wrong", "body.0 (Wrong) comp")):
        status, out, err = prunekit(command, f"{FILE}:{name}", *SHAPE, *target)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert said in err
        assert "add --no-reparameterize to keep its branches" in err
    assert list(home.iterdir()) == []
    assert prunekit("inspect", f"{FILE}:broken", *SHAPE, "--no-reparameterize")[0] == 0


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_from_a_table_to_a_run_that_another_process_loads(prunekit: Says, home):
    nets = ("--nets", "4", "--rounds", "3", "-o", "table.json")
    status, _, err = prunekit("profile", NET, *FAST, *nets)
    assert status == 0
    assert NOTE in err
    entries = json.loads((home / "table.json").read_text())["entries"]
    kernels = [tuple(entry["shape"]["kernel"]) for entry in entries]
    assert sorted(kernels) == [(), (3, 3), (3, 3), (3, 3)]

    data = ("--data", "digits", "--epochs", 2, "--table", "table.json", "--target-latency", "70%")
    status, _, err = prunekit("prune", NET, *FAST, *data, "-o", "run")
    assert status == 0, err
    assert err.count(NOTE) == 1
    assert {"BatchNormalization", "Add"} & operators(home / "run/model.onnx") == set()
    assert operators(home / "run/dense.onnx") == operators(home / "run/model.onnx")
    assert "reparameterize = true" in (home / "run/config.toml").read_text()

    code = f"""
import sys, torch
sys.path.insert(0, {str(TESTS)!r})
import prunekit as pk
from support import rep_nets
from safetensors.torch import save_file
save_file(pk.load("run", rep_nets.net()).state_dict(), "loaded.safetensors")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    loaded, kept = load_file("loaded.safetensors"), load_file("run/model.safetensors")
    assert loaded.keys() == kept.keys()
    assert all(torch.equal(loaded[name], kept[name]) for name in kept)
    assert kept["body.0.merged.weight"].shape[1] < 32


def test_a_run_is_pruned_again(home, monkeypatch):
    monkeypatch.setattr(zoo, "build", lambda name, **_: rep_nets.net())
    model, spec = zoo.build("resnet20"), "zoo:resnet20"
    for first, second in ((True, True), (True, False), (False, True), (False, False)):
        dense = pk.reparameterize(model) if first else model
        plan = ChannelPlan.random(pk.trace(dense, images()[:1]), 0.7, seed=1)
        pk.save("run", pk.slim(dense, plan), plan, spec)
        assert ChannelPlan.load("run/plan.json").base.reparameterized == first

        recipe = make_recipe({"model": "run", "input": "1x1x8x8", "reparameterize": second})
        opened = open_dense(recipe).module
        assert bool(folded_blocks(opened)) == (first or second)
        plan = ChannelPlan.random(pk.trace(opened, images()[:1]), 0.7, seed=2)
        small = pk.slim(opened, plan).eval()
        pk.save("again", small, plan, "run")
        for given in (None, pk.load("run")):
            assert same(pk.load("again", given), small)
        torch.testing.assert_close(outputs(pk.load("again"), images()), outputs(small, images()))


def test_a_folded_run_says_nothing_when_it_is_opened(prunekit: Says, run, monkeypatch):
    monkeypatch.setattr(zoo, "build", lambda name, **_: rep_nets.net())
    assert prunekit("inspect", "zoo:resnet20", *SHAPE)[2].startswith(NOTE)
    small = pk.load(run, rep_nets.net())
    plan = ChannelPlan.load(run / "plan.json")
    pk.save(run, small, plan, "zoo:resnet20")
    status, _, err = prunekit("inspect", run, *SHAPE)
    assert (status, err) == (0, "")


def test_weights_with_branches_and_without(prunekit: Says, home):
    trained = lively(Network(num_classes=10))
    folded = pk.reparameterize(trained)
    save_file(trained.state_dict(), "whole.safetensors")
    save_file(folded.state_dict(), "folded.safetensors")
    save_file({"a": torch.ones(1)}, "other.safetensors")
    given = {"model": NET, "input": "1x1x8x8"}
    for name in ("whole", "folded"):
        opened = open_dense(make_recipe({**given, "weights": f"{name}.safetensors"})).module
        assert same(opened, folded)
        assert not opened.training
    whole = make_recipe({**given, "weights": "whole.safetensors", "reparameterize": False})
    assert same(open_dense(whole).module, trained)
    for file, more in (("other", ()), ("folded", ("--no-reparameterize",))):
        weights = ("--weights", f"{file}.safetensors", *more)
        status, _, err = prunekit("prune", NET, *FAST, *weights)
        assert status == 2
        assert f"{file}.safetensors does not fit Network: it lacks stem." in err
        assert "; it lacks stem.point.weight; " in err


def test_export_of_a_model(prunekit: Says, home):
    status, _, err = prunekit("export", NET, *SHAPE, "-o", "net.onnx")
    assert status == 0
    assert err.splitlines()[0].startswith(NOTE)
    assert "BatchNormalization" not in operators(home / "net.onnx")
    wide = ("-o", "wide.onnx", "--no-reparameterize")
    status, _, err = prunekit("export", NET, *SHAPE, *wide)
    assert status == 0
    assert "folded" not in err
    assert "Add" in operators(home / "wide.onnx")
