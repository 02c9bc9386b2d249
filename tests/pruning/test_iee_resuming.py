"""A training by IEE taken up at any step ends in the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.data import Dataset

import prunekit as pk
from prunekit.support.errors import UsageError
from prunekit.train import evaluate, fit
from support import environment
from support.iee_loop import Loop, copied, saved, tensors, went_on
from support.iee_trainings import CONFIG, fitting, some_data

# --- stopping and going on


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", {}),
        ("adamw", {"source": "mru", "grow": "mru", "reactivate": 0.5}),
        ("adamw", {"momentum": "zero", "start": "dense", "norm": "running"}),
        ("sgd", {"freeze": False, "grow": "zero", "adaptive": True, "improve": 0}),
    ],
)
def test_a_run_taken_up_at_any_step_ends_in_the_same_bits(optimizer, options, begun):
    short = {"steps": 18, "warmup": 1, "estimate": 2, "improve": 2, "explore": 2, **options}
    whole, stops = Loop(optimizer=optimizer, **short), []
    _ = whole.iee.plan
    while whole.done < 18:
        stops.append(saved(whole))
        whole.step()
    assert len(whole.iee.history) >= 2
    stages = set()
    for checkpoint in stops:
        stages.add(checkpoint["iee"][1]["stage"])
        untouched = copied(checkpoint["iee"][0])
        loop = went_on(checkpoint, begun, optimizer=optimizer, **short)
        assert loop.iee.stage == checkpoint["iee"][1]["stage"]
        loop.run(18 - loop.done)
        assert loop.iee.plan == whole.iee.plan
        assert loop.iee.history == whole.iee.history
        assert loop.iee.work == whole.iee.work
        assert loop.iee.survival() == whole.iee.survival()
        for name, tensor in tensors(whole.iee.slim).items():
            assert torch.equal(tensors(loop.iee.slim)[name], tensor), (name, checkpoint["done"])
        for name, state in whole.state().items():
            for key, value in state.items():
                assert torch.equal(loop.state()[name][key], value)
        for name, tensor in untouched.items():  # what was loaded stays the caller's
            assert torch.equal(checkpoint["iee"][0][name], tensor)
    assert stages >= {"warm-up", "estimate", "explore", "final"}


class Interrupted(Dataset):
    """A set whose sample cannot be read from the ``count``-th reading on."""

    def __init__(self, of, count):
        self.of, self.left = of, count

    def __len__(self):
        return len(self.of)

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.of[index]


@pytest.mark.parametrize(
    ("extra", "options"),
    [({}, {}), ({"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.3}, {"reactivate": 0.5})],
)
def test_a_resumed_training_ends_in_the_same_bits(tmp_path, extra, options):
    data, config = some_data(), replace(CONFIG, **extra)
    model, whole = fitting(**options)
    told = []
    result = fit(model, data, config, rule=whole, log=told.append)
    assert result.accuracy == evaluate(whole.slim, data.val)
    assert not whole.slim.training
    assert [row["stage"] for row in told].count("update") == len(whole.history) == 2
    stages = set()

    def stop_after(epoch, rule):
        def log(row):
            if row.get("epoch") == epoch:
                stages.add(rule.stage)
                raise KeyboardInterrupt

        return log

    for epoch in range(1, 6):
        folder = tmp_path / str(epoch)
        model, first = fitting(**options)
        with pytest.raises(KeyboardInterrupt):
            fit(model, data, config, folder=folder, rule=first, log=stop_after(epoch, first))
        # and once more in the middle of the next epoch, which is then begun anew
        model, second = fitting(**options)
        broken = replace(data, train=Interrupted(data.train, 40))
        with pytest.raises(KeyboardInterrupt):
            fit(model, broken, config, folder=folder, resume=True, rule=second)
        model, last = fitting(**options)
        again = fit(model, data, config, folder=folder, resume=True, rule=last)
        assert replace(again, seconds=0) == replace(result, seconds=0)
        assert last.plan == whole.plan
        assert last.history == whole.history
        assert last.work == whole.work
        for name, tensor in tensors(whole.slim).items():
            assert torch.equal(tensors(last.slim)[name], tensor)
    assert stages == {"improve", "explore", "estimate", "final"}
    # finished: nothing is trained again
    model, finished = fitting(**options)
    last = fit(model, data, config, folder=tmp_path / "1", resume=True, rule=finished)
    assert replace(last, seconds=0) == replace(result, seconds=0)
    assert all(torch.equal(t, tensors(whole.slim)[n]) for n, t in tensors(finished.slim).items())


def test_other_settings_cannot_be_resumed(tmp_path):
    data, config = some_data(), replace(CONFIG, epochs=1)
    model, rule = fitting()
    fit(model, data, config, folder=tmp_path, rule=rule)
    for changed, message in (
        ({"omega": 0.1}, "`omega` 0.4, now it is 0.1; use the same to resume"),
        ({"estimate": 4}, "`estimate` 3, now it is 4"),
    ):
        model, rule = fitting(**changed)
        with pytest.raises(UsageError) as caught:
            fit(model, data, config, folder=tmp_path, resume=True, rule=rule)
        assert message in str(caught.value)
    other = Loop(criterion=pk.Magnitude())
    with pytest.raises(UsageError, match="`criterion` 'taylor', now it is 'magnitude'"):
        other.iee.load_state(*saved(Loop())["iee"])
    less = Loop(budget="macs=40%")
    with pytest.raises(UsageError, match=r"`budget` 0\.5, now it is 0\.39"):
        less.iee.load_state(*saved(Loop())["iee"])


# --- several processes

SCRIPT = """
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
import prunekit as pk
from support.nets import Residual, image, randomise
from prunekit.support.registry import criteria
from accelerate import PartialState
from prunekit.train import evaluate, fit, loader, loss_fn
from safetensors.torch import save_file
from support.iee_loop import tensors
from support.iee_trainings import CONFIG, EPOCHS, some_data

def alone(iee, model, data):  # a loop of one's own, each process with its share of the batches
    world, optimizer = int(os.environ.get("WORLD_SIZE", "1")), torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9
    )
    for epoch in range(6):
        for batch in loader(data.train, 16, 0, epoch=epoch, rank=int(rank), world=world):
            loss_fn(iee.model, batch).backward()
            iee.step(optimizer)
    return evaluate(iee.slim, data.val)


out, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
PartialState(cpu=True)
for name in ("magnitude", "taylor", "taylor_alone"):
    model = randomise(Residual(12, norm=False))
    graph = pk.trace(model, image())
    schedule = pk.IEESchedule(24, **EPOCHS, reactivate=0.7)
    budget, criterion = pk.Budget.parse("macs=50%"), criteria.get(name.removesuffix("_alone"))()
    iee = pk.IEE(model.train(), graph, None, budget, criterion, schedule)
    if name.endswith("alone"):
        accuracy = alone(iee, model, some_data())
    else:
        accuracy = fit(model, some_data(), CONFIG, rule=iee).accuracy
    save_file({n: t.clone() for n, t in tensors(iee.slim).items()}, out / f"{name}{rank}.st")
    facts = [iee.history, iee.plan.keep, accuracy]
    (out / f"{name}{rank}.json").write_text(json.dumps(facts))


class Stopped(Exception):
    pass


class Stopping(pk.IEE):  # one step into the third epoch, whose checkpoint is of an exploration
    stops = False

    def after_step(self, model, optimizer, step):
        if self.stops and step == 9:
            raise Stopped
        super().after_step(model, optimizer, step)


def fresh():
    model = randomise(Residual(12)).train()
    schedule = pk.IEESchedule(24, **EPOCHS)
    return model, Stopping(model, pk.trace(model, image()), None, budget, schedule=schedule)


for name in ("whole", "resumed"):
    model, iee = fresh()
    folder = out / name
    if name == "resumed":
        iee.stops = True
        try:
            fit(model, some_data(), CONFIG, folder=folder, rule=iee)
        except Stopped:
            assert iee.stage == "explore"
            model, iee = fresh()
    fit(model, some_data(), CONFIG, folder=folder, resume=name == "resumed", rule=iee)
    save_file({n: t.clone() for n, t in tensors(iee.slim).items()}, out / f"{name}{rank}.st")
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for folder, command in (("two", several), ("one", ())):
        (tmp_path / folder).mkdir()
        run = subprocess.run(
            [sys.executable, *command, str(script), str(tmp_path / folder)],
            env={
                **os.environ,
                "PYTHONPATH": environment()["PYTHONPATH"],
                "CUDA_VISIBLE_DEVICES": "",
            },
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert run.returncode == 0, run.stderr
    for name in ("magnitude", "taylor", "taylor_alone"):
        found = [tmp_path / where / name for where in ("two", "two", "one")]
        files = [path.with_name(f"{name}{r}") for path, r in zip(found, (0, 1, 0), strict=True)]
        first, second, alone = (load_file(f.with_suffix(".st")) for f in files)
        told = [json.loads(f.with_suffix(".json").read_text()) for f in files]
        assert told[0] == told[1]
        assert told[0][1:] == told[2][1:]
        for mine, theirs in zip(told[0][0], told[2][0], strict=True):
            assert mine.pop("widths") == theirs.pop("widths")
            assert mine == pytest.approx(theirs)
        for key, tensor in alone.items():
            assert torch.equal(first[key], second[key])
            assert torch.allclose(first[key], tensor, rtol=1e-3, atol=1e-5), key
    for where, ranks in (("two", (0, 1)), ("one", (0,))):  # killed and resumed, with BatchNorm
        whole, *others = (
            load_file(tmp_path / where / f"{name}{r}.st")
            for name in ("whole", "resumed")
            for r in ranks
        )
        for other in others:
            assert other.keys() == whole.keys()
            assert all(torch.equal(other[key], whole[key]) for key in whole)
