"""IEE in trainings: taken up again, in loops of one's own, in several processes, by the command."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ON_FAKE
from core_nets import (
    Plain,
    Residual,
    Tokens,
    image,
    randomise,
)
from iee_loop import SHORT, Loop, batch, copied, tensors
from test_resume import EPOCHS as SLOW_EPOCHS
from test_resume import interrupted_here
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import prunekit as pk
from prunekit.support.errors import TrainingError, UsageError
from prunekit.train import Data, TrainConfig, evaluate, fit

# --- stopping and going on


def saved(loop):
    """A checkpoint of a loop of one's own, as it would come back from a file."""
    named, facts = loop.iee.state()
    return {
        "model": copy.deepcopy(loop.model.state_dict()),
        "optimizer": copy.deepcopy(loop.optimizer.state_dict()),
        "iee": (copied(named), json.loads(json.dumps(facts))),
        "done": loop.done,
    }


def went_on(checkpoint, begun, *arguments, **options):
    loop = Loop(*arguments, **options)
    loop.model.load_state_dict(checkpoint["model"])
    if begun:
        loop.iee.begin(loop.model, loop.optimizer)
    loop.iee.load_state(*checkpoint["iee"])
    loop.optimizer.load_state_dict(checkpoint["optimizer"])
    loop.done = checkpoint["done"]
    return loop


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


def some_data(count=64):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (torch.arange(count) % 2)
    images[labels > 1, 0] += 1
    return Data(
        TensorDataset(images, labels), TensorDataset(images[:20], labels[:20]), 4, (3, 8, 8), "some"
    )


CONFIG = TrainConfig(epochs=6, batch_size=16, lr=0.05, device="cpu")
EPOCHS = {"warmup": 1, "estimate": 3, "improve": 3, "explore": 3, "until": 0.9, "omega": 0.4}
"""Of four steps each end in improve, explore, estimate, explore, improve and the last stage."""


def fitting(make=Residual, **options):
    model = randomise(make())
    graph = pk.trace(model, image())
    schedule = pk.IEESchedule(24, **{**EPOCHS, **options})
    return model, pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)


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


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax"])
def test_any_optimizer_with_one_number_per_weight(name):
    loop = Loop()
    loop.optimizer = getattr(torch.optim, name)(loop.model.parameters(), 1e-3)
    loop.until("explore")
    inside, start = loop.inside(), copied(tensors(loop.iee.model))
    while loop.iee.stage == "explore":
        wide = loop.iee.model
        loop.step()
    for key, parameter in wide.named_parameters():
        same = parameter.detach() == start[key]
        assert same[inside[key]].all()
        assert same[~inside[key]].float().mean() < 0.5 or inside[key].all()
    loop.run(30 - loop.done)
    assert loop.iee.stage == "final"


def test_looking_at_it_before_the_training_changes_nothing():
    data = some_data()
    model, plain = fitting()
    fit(model.eval(), data, replace(CONFIG, epochs=2), rule=plain)
    model, looked = fitting()
    model.eval()
    assert looked.plan.widths
    assert not looked.model.training
    fit(model, data, replace(CONFIG, epochs=2), rule=looked)
    for name, tensor in tensors(plain.slim).items():
        assert torch.equal(tensors(looked.slim)[name], tensor), name
    model, trained = fitting()
    shape = trained.plan
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(trained.slim.fc.bias, model.fc.bias)
    assert trained.plan == shape


def test_an_average_of_several_networks_is_refused():
    model, rule = fitting()
    with pytest.raises(UsageError, match="`ema` averages one network, and this rule trains"):
        fit(model, some_data(), replace(CONFIG, ema=0.9), rule=rule)


# --- a loop of one's own


def test_a_loop_of_ones_own_with_a_schedule_of_learning_rates(tmp_path):
    model = randomise(Plain(12)).train()
    graph = pk.trace(model, image())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    schedule = pk.IEESchedule(40, warmup=4, estimate=6, improve=2, explore=2, until=0.5)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    fixed = batch(0, 32, torch.float32)
    first = float(F.cross_entropy(iee.slim(fixed[0]), fixed[1]).detach())
    seen, used = [], []
    for _ in range(40):
        used.append(optimizer.param_groups[0]["lr"])
        F.cross_entropy(iee.model(fixed[0]), fixed[1]).backward()
        iee.step(optimizer)
        rates.step()
        seen.append(iee.stage)
        assert all(p.grad is None for p in iee.model.parameters())
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
            id(p) for p in iee.model.parameters()
        }
    assert used == pytest.approx([0.05 * (1 + math.cos(math.pi * t / 40)) for t in range(40)])
    assert seen.count("final") == 27  # one cycle of ten steps after four
    assert iee.model is iee.slim
    assert float(F.cross_entropy(iee.slim(fixed[0]), fixed[1]).detach()) < first - 0.05
    small = iee.slim.eval()
    pk.save(tmp_path / "run", small, iee.plan, "core_nets:Plain", {"width": 12})
    loaded = pk.load(tmp_path / "run", Plain(12))
    assert torch.equal(loaded(image(3)), small(image(3)))
    assert pk.ChannelPlan.load(tmp_path / "run" / "plan.json").keep == iee.plan.keep


def test_the_networks_keep_the_modes_of_their_modules():
    class Dropping(Residual):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.fc(self.drop(F.relu(self.bn(self.stem(x))).mean((2, 3))))

    loop = Loop(Dropping)
    assert loop.iee.model.drop.training
    loop.iee.model.bn.eval()  # a user who freezes the statistics
    held = loop.iee.model.bn.running_mean.clone()
    whole = loop.model.bn.running_mean.clone()
    for _ in range(30):
        loop.step()
        assert not loop.iee.model.bn.training
        assert loop.iee.model.drop.training
        assert loop.iee.slim.drop.training
    now = loop.iee.model.bn.running_mean
    assert torch.equal(now, whole[list(loop.iee.plan.keep["stem"])])
    assert held.shape


class Odd(nn.Module):
    """Tied weights, a frozen layer, one that nothing uses, and buffers of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.hidden = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 1)
        self.one, self.other = nn.Linear(10, 10), nn.Linear(10, 10)
        self.other.weight = self.one.weight
        self.frozen, self.unused = nn.Linear(10, 8), nn.Linear(5, 5)
        self.frozen.weight.requires_grad_(False)
        self.head, self.scale = nn.Linear(8, 4), nn.Parameter(torch.ones(()))
        self.register_buffer("offset", torch.full((4,), 0.5))
        self.register_buffer("seen", torch.tensor(0), persistent=False)

    def forward(self, x):
        self.seen += 1
        x = F.relu(self.hidden(F.relu(self.stem(x)))).mean((2, 3))
        x = F.relu(self.other(F.relu(self.one(x))))
        return self.scale * self.head(F.relu(self.frozen(x))) + self.offset


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("start", ["uniform", "dense"])
def test_tied_frozen_unused_and_scalar_parameters(optimizer, start):
    loop = Loop(Odd, optimizer, "macs=40%", start=start, criterion=pk.Magnitude())
    frozen = loop.model.frozen.weight.clone()
    held = {}
    while loop.done < 30:
        if loop.iee.stage == "explore" and not held:
            held = copied(tensors(loop.iee.slim))
        loop.step()
        network = loop.iee.model
        assert network.one.weight is network.other.weight
        assert not network.frozen.weight.requires_grad
        assert torch.equal(network.offset, loop.model.offset)
        if held and loop.iee.stage != "explore":
            assert torch.equal(network.scale, held["scale"])
            assert torch.equal(network.head.bias, held["head.bias"])
            held = {}
    inside = loop.inside()
    rows = frozen[inside["frozen.weight"]]
    assert torch.equal(loop.iee.slim.frozen.weight.reshape(-1), rows)
    assert not torch.equal(loop.iee.slim.scale, torch.ones((), dtype=torch.float64))
    unused = loop.model.unused.weight
    assert torch.equal(loop.iee.slim.unused.weight, unused)
    assert loop.iee.plan.widths["stem"] < 12


def test_linear_networks_of_tokens():
    model = randomise(Tokens()).train()
    graph = pk.trace(model, torch.randn(2, 5, 6))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = pk.IEESchedule(20, warmup=1, estimate=2, improve=1, explore=2, until=1.0)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("params=50%"), schedule=schedule)
    for step in range(20):
        inputs = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(step))
        F.cross_entropy(iee.model(inputs), torch.arange(8) % 3).backward()
        iee.step(optimizer)
    assert iee.stage == "final"
    assert len(iee.history) == 3
    assert sum(p.numel() for p in iee.slim.parameters()) <= 0.5 * sum(
        p.numel() for p in model.parameters()
    )


def test_several_parameter_groups_and_parameters_of_others():
    outside = nn.Parameter(torch.ones(3, dtype=torch.float64))
    left_out = "conv2.weight"
    loop = Loop(lambda: Residual(16))
    named = dict(loop.model.named_parameters())
    assert named.pop(left_out) is not None
    weights = [p for p in named.values() if p.ndim > 1]
    others = [p for p in named.values() if p.ndim < 2]
    groups = [
        {"params": weights, "weight_decay": 0.1, "lr": 0.05},
        {"params": [*others[:2], outside, *others[2:]], "lr": 0.01},
    ]
    loop.optimizer = torch.optim.SGD(groups, momentum=0.9)
    initial = copied(dict(loop.model.named_parameters()))
    while loop.done < 30:
        loop.backward()
        outside.grad = torch.ones_like(outside)
        loop.iee.step(loop.optimizer)
        loop.done += 1
        first, second = (group["params"] for group in loop.optimizer.param_groups)
        live = dict(loop.iee.model.named_parameters())
        assert second[2] is outside
        wanted = [live[name] for name in named if named[name].ndim > 1]
        assert [id(p) for p in first] == [id(p) for p in wanted]
        assert {id(p) for p in loop.optimizer.state} <= {id(p) for p in (*first, *second)}
    assert "momentum_buffer" in loop.optimizer.state[outside]
    assert float(outside.detach()[0]) < 0.5
    inside = loop.inside()
    kept_rows = initial[left_out][inside[left_out]]
    assert torch.equal(dict(loop.iee.slim.named_parameters())[left_out].reshape(-1), kept_rows)


def test_momentum_gathered_before_is_gone_on_with():
    loop = Loop(lambda: Residual(16))
    for step in range(3):  # the dense network, as usual
        loop.optimizer.zero_grad()
        inputs, labels = batch(50 + step)
        F.cross_entropy(loop.model(inputs), labels).backward()
        loop.optimizer.step()
    loop.optimizer.zero_grad()
    dense = {
        n: loop.optimizer.state[p]["momentum_buffer"].clone()
        for n, p in loop.model.named_parameters()
    }
    start = copied(dict(loop.model.named_parameters()))
    inside = loop.inside()
    loop.backward()
    gradients = {n: p.grad.clone() for n, p in loop.iee.model.named_parameters()}
    loop.iee.step(loop.optimizer)
    for name, state in loop.state().items():
        cut = start[name][inside[name]].reshape(gradients[name].shape)
        old = dense[name][inside[name]].reshape(gradients[name].shape)
        assert torch.allclose(
            state["momentum_buffer"], 0.9 * old + gradients[name] + 1e-2 * cut, rtol=1e-12
        )


def test_optimizers_that_do_not_fit():
    loop = Loop()
    loop.backward()
    with pytest.raises(UsageError, match="the optimizer has none of the model's parameters"):
        loop.iee.step(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1))
    loop = Loop().run(1)
    with pytest.raises(UsageError, match="IEE was begun with another optimizer"):
        loop.iee.step(torch.optim.SGD(loop.model.parameters(), 0.1))
    with pytest.raises(UsageError, match="IEE was made for another model"):
        loop.iee.begin(nn.Linear(2, 2), loop.optimizer)

    class Rows(torch.optim.SGD):
        """One number per row, as factored optimizers have."""

        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["row"] = (
                    parameter.detach().flatten(1).mean(1)
                    if (parameter.ndim > 1)
                    else parameter.detach().mean().reshape(1)
                )

    loop = Loop()
    loop.optimizer = Rows(loop.model.parameters(), 0.05)
    with pytest.raises(UsageError, match=r"the optimizer's row for .* needs an optimizer with one"):
        loop.run(6)


def test_iee_needs_a_schedule():
    model = randomise(Residual())
    with pytest.raises(UsageError, match="IEE needs a schedule"):
        pk.IEE(model, pk.trace(model, image()), None, pk.Budget.parse("macs=50%"))


@pytest.mark.parametrize("stage", ["estimate", "explore"])
def test_batches_whose_gradients_overflowed_are_not_scored(stage):
    class Overflowing(pk.Taylor):
        def channel_scores(self, group, modules):
            found = super().channel_scores(group, modules)
            return found * float("inf") if loop.iee.stage == stage and loop.bad > 0 else found

    for bad in (1, 5, 99):  # within the stage, and longer: it waits, but not for ever
        loop = Loop(criterion=Overflowing(), estimate=2, explore=2)
        loop.bad = 0
        loop.until(stage)
        loop.bad = bad
        if bad == 99:
            with pytest.raises(TrainingError, match="no step of IEE's cycle 0 had finite taylor"):
                loop.run(30)
            continue
        for _ in range(bad):
            loop.step()
            loop.bad -= 1
        assert loop.iee.stage == stage
        loop.run(30 - loop.done)
        assert loop.iee.stage == "final"


def test_a_parametrised_weight_is_refused_by_name():
    model = Residual()
    nn.utils.parametrizations.weight_norm(model.conv1)
    graph = pk.trace(model, image())
    schedule = pk.IEESchedule(30, **SHORT)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    with pytest.raises(UsageError, match=r"conv1\.weight is computed by a parametrisation"):
        _ = iee.model


# --- several processes

SCRIPT = """
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
import prunekit as pk
from core_nets import Residual, image, randomise
from prunekit.support.registry import criteria
from accelerate import PartialState
from prunekit.train import evaluate, fit, loader, loss_fn
from safetensors.torch import save_file
from iee_loop import tensors
from test_iee_training import CONFIG, EPOCHS, some_data

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
                "PYTHONPATH": str(Path(__file__).parent),
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


# --- on the command line

PRUNE = (
    *("prune", "net.py:tiny", *ON_FAKE, "--table", "table.json", "--target-latency", "65%"),
    *("--data", "digits", "--batch-size", 256, "--method", "iee", "--seed", 1),
)
"""Five steps an epoch."""
QUICK = ("--iee", "explore=2", "--iee", "improve=1", "--iee", "estimate=3", "--iee", "warmup=1")


def agrees(run):
    """The plan, the weights and the exported network are one; gives the plan."""
    from prunekit.core.artifact import Artifact
    from prunekit.core.target import Target
    from prunekit.runtimes import runtime_for

    plan, small = pk.ChannelPlan.load(run / "plan.json"), pk.load(run, "net.py:tiny").eval()
    assert not plan.is_dense
    target = Target.parse("onnxruntime:cpu")
    engine = runtime_for(target).load(Artifact.of_file(run / "model.onnx"), target)
    inputs = torch.randn(1, 1, 8, 8)
    (found,) = engine.run({"input": inputs.numpy()})
    engine.close()
    np.testing.assert_allclose(found, small(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)
    report = json.loads((run / "report.json").read_text())
    widths = {group: width for group, (_, width) in report["widths"].items()}
    assert widths == {group: plan.widths[group] for group in widths}
    assert report["latency"]["met"]
    return report


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_prune_from_scratch_without_a_dense_training(prunekit, home):
    status, _, err = prunekit(*PRUNE, "--from-scratch", "--epochs", 6, *QUICK, "-o", "new")
    assert status == 0, err
    report = agrees(home / "new")
    assert report["accuracy"]["dense"] is None
    assert report["accuracy"]["pruned"] > 0.15
    assert report["training_cost"]["relative_flops"] < 1
    assert report["training_cost"]["dense_seconds"] == 0
    assert not (home / "new" / "dense.safetensors").exists()
    rows = log_of(home / "new")
    updates = [row for row in rows if row["stage"] == "update"]
    epochs = [row for row in rows if row["stage"] == "iee"]
    assert [row["step"] for row in updates] == [7, 13]  # 30 steps, half of them with updates
    assert [row["epoch"] for row in epochs] == list(range(1, 7))
    assert all(0 < row["relative_flops"] < 1 for row in updates)
    assert updates[-1]["widths"] == {g: w for g, (_, w) in report["widths"].items()}
    assert epochs[-1]["accuracy"] == pytest.approx(report["accuracy"]["pruned"], abs=0.01)


def test_prune_a_trained_network(prunekit, home):
    from prunekit.networks.build import build
    from prunekit.networks.saved import save_weights

    save_weights(build("net.py:tiny", num_classes=10, in_channels=1).module, home / "w.safetensors")
    options = ("--epochs", 3, "--iee", "omega=0.3", "--iee", "explore=4", "-o", "new")
    status, _, err = prunekit(*PRUNE, "--weights", "w.safetensors", *options)
    assert status == 0, err
    report = agrees(home / "new")
    assert report["accuracy"]["dense"] is not None
    assert report["training_cost"]["relative_flops"] <= 1
    updates = [row for row in log_of(home / "new") if row["stage"] == "update"]
    assert updates[0]["omega"] == 0.3
    assert "[iee]" in (home / "new" / "config.toml").read_text()


@pytest.mark.slow
def test_an_interrupted_prune_ends_in_the_same_plan_and_weights(prunekit, home):
    command = (*PRUNE, "--from-scratch", "--epochs", 6, *QUICK)
    assert prunekit(*command, "-o", "whole")[0] == 0
    checkpoint = home / "new" / "work" / "iee" / "checkpoint.safetensors"
    err = interrupted_here(prunekit, SLOW_EPOCHS, (*command, "-o", "new"), checkpoint.is_file)
    assert "same command with --resume" in err
    before = log_of(home / "new") if (home / "new" / "log.jsonl").exists() else []
    assert sum(row["stage"] == "iee" for row in before) < 6
    status, _, err = prunekit(*command, "--iee", "omega=0.5", "-o", "new", "--resume")
    assert status == 2
    assert "cannot resume new: `iee` is {" in err
    status, _, err = prunekit(*command, "-o", "new", "--resume")
    assert status == 0, err
    agrees(home / "new")
    for name in ("plan.json", "model.safetensors", "model.onnx"):
        assert (home / "new" / name).read_bytes() == (home / "whole" / name).read_bytes(), name
    steps = [
        [r["step"] for r in log_of(home / n) if r["stage"] == "update"] for n in ("new", "whole")
    ]
    assert steps[0] == steps[1]
