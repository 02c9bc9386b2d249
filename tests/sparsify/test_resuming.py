"""Sparse trainings saved, loaded, taken up again, in two processes."""

import copy
import json
import subprocess
import sys

import pytest
import torch

import prunekit as pk
from prunekit.sparsify import SparsitySchedule, verify
from prunekit.support.errors import ModelError, UsageError
from prunekit.train import TrainConfig, fit
from support import environment
from support.iee_loop import copied
from support.sparse_loop import METHODS, SHORT, Loop, net, saved, went_on
from support.sparse_training import some_data


def test_weights_that_were_masked_before_a_state_is_loaded_are_noticed():
    loop = Loop("rigl", 0.8).run(12)
    tensors, facts = loop.sparse.state()
    values = copied(loop.model.state_dict())
    model = net()
    model.load_state_dict(values, strict=False)
    late = METHODS["rigl"](model, 0.8, loop.sparse.schedule)  # masks what was just loaded
    with pytest.raises(UsageError, match="first make RigL, then load the model's state dict"):
        late.load_state(tensors, facts)
    model.load_state_dict(values, strict=False)
    late.load_state(tensors, facts)
    verify(model, late.plan)
    assert all(torch.equal(late.masks[n], on) for n, on in loop.sparse.masks.items())


# --- saving


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = pk.sparsify  # the name is the package, whatever was imported before
    assert model.RigL is METHODS["rigl"]
    from prunekit import zoo

    network = zoo.build("resnet20").eval()
    sparse = pk.sparsify.Static(network, pattern="2:4", schedule=SparsitySchedule(1))
    pk.save(tmp_path / "run", network, sparse.plan, base="zoo:resnet20")
    loaded = pk.load(tmp_path / "run")
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    plan = sparse.plan
    assert pk.SparsityPlan.load(tmp_path / "run/sparsity.json") == plan
    with torch.no_grad():
        network.get_submodule(plan.sparse[0].name).weight.fill_(1.0)
    with pytest.raises(ModelError, match="weights that are not zero, its plan"):
        pk.save(tmp_path / "other", network, plan, base="zoo:resnet20")
    assert not (tmp_path / "other" / "model.safetensors").exists()


def test_a_state_can_be_saved_as_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    for options in ({}, {"source": "mru"}, {"grow": "mru"}, {"momentum": "kept"}, "channels last"):
        model = net()
        if options == "channels last":
            model, options = model.to(memory_format=torch.channels_last), {"momentum": "kept"}
        loop = Loop("iee", model=copy.deepcopy(model), **options)
        while loop.done < 8:
            tensors, facts = loop.sparse.state()
            save_file(tensors, tmp_path / "state.safetensors")
            back = load_file(tmp_path / "state.safetensors")
            assert back.keys() == tensors.keys()
            loop.sparse.load_state(back, facts)
            loop.step()
        again = Loop("iee", model=model, **options).run(8)
        for name, value in again.model.state_dict().items():
            assert torch.equal(loop.model.state_dict()[name], value), name


# --- stopping and going on


@pytest.mark.parametrize(
    ("method", "optimizer", "options"),
    [
        ("iee", "sgd", {}),
        ("iee", "adamw", {"momentum": "kept", "reactivate": 0.5, "sample": "gradient"}),
        ("iee", "sgd", {"source": "mru", "freeze": False, "criterion": pk.Taylor()}),
        ("iee", "sgd", {"grow": "mru", "freeze": False, "momentum": "kept"}),
        ("rigl", "sgd", {"ranking": "global"}),
        ("set", "adamw", {"criterion": pk.Taylor()}),
        ("gmp", "sgd", {}),
        ("static", "nadam", {}),
    ],
)
def test_a_training_taken_up_at_any_step_ends_in_the_same_bits(method, optimizer, options):
    arguments, options = (method, 0.8, optimizer), {"steps": 24, **options}
    whole, stops = Loop(*arguments, **options), []
    while whole.done < 24:
        stops.append(saved(whole))
        whole.step()
    for checkpoint in stops:
        json.dumps(checkpoint[2][1])  # facts go into a file
        loop = went_on(checkpoint, *arguments, **options).run()
        assert loop.sparse.history == whole.sparse.history
        assert loop.sparse.work == whole.sparse.work
        assert loop.sparse.survival() == whole.sparse.survival()
        for name, value in whole.state().items():
            assert torch.equal(loop.state()[name], value), (name, checkpoint[3])
    other = Loop(method, 0.7, optimizer, **options)
    with pytest.raises(UsageError, match="was made with `target`"):
        other.sparse.load_state(*stops[3][2])


class _StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["iee", "rigl"])
def test_fit_goes_on_as_if_never_stopped(tmp_path, method):
    config = TrainConfig(epochs=5, batch_size=8, lr=0.05)
    data = some_data()

    def train(folder, stop=None, resume=False):
        model = net()
        # a cycle that does not divide an epoch, so that checkpoints fall into every stage
        rule = METHODS[method](model, 0.8, SparsitySchedule(40, **{**SHORT, "explore": 6}))
        rows = []

        def log(row):
            rows.append(row)
            if row["stage"] != "update" and row["epoch"] == stop:
                raise _StopError

        fit(model, data, config, folder=folder, resume=resume, rule=rule, log=log)
        return model, rule, rows

    model, rule, rows = train(tmp_path / "whole")
    stages = {row["stage"] for row in rows}
    assert stages == {"update", "training"}
    for stop in (1, 2, 3, 4):
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(_StopError):
            train(folder, stop)
        again, after, _ = train(folder, resume=True)
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), (name, stop)
        assert after.history == rule.history
        verify(again, after.plan)


WORKER = """
import hashlib, json, sys, torch
from pathlib import Path
from support.sparse_loop import METHODS, SHORT, net
from support.sparse_training import some_data
from prunekit.sparsify import SparsitySchedule, verify
from prunekit.train import TrainConfig, fit
from prunekit.support.processes import rank
torch.set_num_threads(1)
folder, *methods = sys.argv[1:]
import prunekit as pk
found = {}
for method in methods:
    model = net(rank())  # other weights on every rank, until the first one's are sent round
    rule = METHODS[method](model, 0.8, SparsitySchedule(40, **SHORT), criterion=pk.Taylor())
    fit(model, some_data(), TrainConfig(epochs=5, batch_size=8, lr=0.05), rule=rule)
    verify(model, rule.plan)
    digest = hashlib.sha256()
    for part in [*rule.masks.values(), *(p for p in model.parameters())]:
        digest.update(part.detach().contiguous().numpy().tobytes())
    found[method] = digest.hexdigest(), rule.history
Path(folder, f"rank{rank()}.json").write_text(json.dumps(found))
"""


def test_two_processes_have_the_same_structure(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path), "iee", "rigl"],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first == second
    assert [*first] == ["iee", "rigl"]
    assert all(len(history) >= 3 for _, history in first.values())
