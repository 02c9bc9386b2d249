"""A loop of one's own around IEE, and what is active in it told from the graph alone."""

from __future__ import annotations

import copy
import json

import torch
import torch.nn.functional as F

import prunekit as pk
from prunekit.allocation.costs import total
from prunekit.core.role import IN
from support.nets import (
    Residual,
    image,
    randomise,
)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "still": lambda p: torch.optim.SGD(p, 0.0),
}
SHORT = {
    "warmup": 2,
    "estimate": 3,
    "improve": 2,
    "explore": 3,
    "until": 0.9,
    "omega": 0.4,
    "approach": 0.5,
    "grow": "explored",
}
"""Three cycles of 8 steps in 30, and a few steps after them."""


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copied(named):
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def batch(step, size=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(size, 3, 8, 8, generator=generator)
    return inputs.to(dtype), torch.randint(0, 4, (size,), generator=generator)


def belongs(model, graph, plan):
    """Which elements of every tensor have all their channels in ``plan``: from the graph alone."""
    inside = {name: torch.ones_like(t, dtype=torch.bool) for name, t in tensors(model).items()}
    modules = dict(model.named_modules())
    for group in graph.groups:
        for channel in sorted({*range(group.size)} - {*plan.keep[group.id]}):
            for member in group.members:
                module = modules[member.module]
                own = {**module._parameters, **module._buffers}
                for name in (n for n, t in own.items() if t is not None and t.numel() > 1):
                    mask = inside[f"{member.module}.{name}"]
                    for position in member.index[channel].tolist():
                        if member.role != IN:
                            mask[position] = False
                        elif mask.ndim > 1:
                            mask[:, position] = False
    return inside


def lifted(inside, small):
    """A slim tensor's elements at their places in the dense one, zero elsewhere."""
    dense = torch.zeros(inside.shape, dtype=small.dtype)
    dense[inside] = small.detach().reshape(-1)
    return dense


class Loop:
    """A loop of one's own around IEE, over batches that are a function of the step."""

    def __init__(
        self,
        make=Residual,
        optimizer="sgd",
        budget="macs=50%",
        criterion=None,
        *,
        steps=30,
        same_batch=False,
        solver=None,
        granularity=None,
        **options,
    ):
        self.model = randomise(make()).double().train()
        self.graph = pk.trace(self.model, image().double())
        self.model.train()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.budget = pk.Budget.parse(budget)
        self.iee = pk.IEE(
            self.model,
            self.graph,
            None,
            self.budget,
            criterion,
            pk.IEESchedule(steps, **{**SHORT, **options}),
            solver=solver,
            granularity=granularity,
        )
        self.same_batch = same_batch
        self.done = 0

    def backward(self):
        inputs, labels = batch(0 if self.same_batch else self.done)
        F.cross_entropy(self.iee.model(inputs), labels).backward()

    def step(self):
        self.backward()
        self.iee.step(self.optimizer)
        self.done += 1

    def run(self, count):
        for _ in range(count):
            self.step()
        return self

    def until(self, stage):
        while self.iee.stage != stage:
            self.step()
        return self

    def state(self):
        """The optimizer's state by the name of the parameter it trains."""
        names = {id(p): n for n, p in self.iee.model.named_parameters()}
        return {names[id(p)]: s for p, s in self.optimizer.state.items() if id(p) in names}

    def inside(self):
        return belongs(self.model, self.graph, self.iee.plan)

    def cost(self, widths):
        return total(self.graph, widths, self.iee.chooser.costs)

    @property
    def limit(self):
        return self.budget.limit(self.cost({}))


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
