"""Save a pruned network and load it again; nothing is pickled."""

import torch

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
example = torch.randn(1, 3, 16, 16)
model = zoo.build("resnet8").eval()
graph = pk.trace(model, example)
plan = pk.ChannelPlan.from_widths(graph, {"blocks.0.conv1": 8, "blocks.2.conv1": 24})
small = pk.slim(model, plan)
pk.save("run/", small, plan, base="zoo:resnet8")

again = pk.load("run/")
with torch.no_grad():
    assert torch.equal(again(example), small(example))

plan.save("plan.json")  # a plan alone is a file too, for the same dense network
assert pk.ChannelPlan.load("plan.json").widths == plan.widths

# Where the dense network is your own code, hand it over: this says that it may run.
pk.save("own/", small, plan, base="mine.py:net")
again = pk.load("own/", zoo.build("resnet8"))
print("loaded:", type(again).__name__, plan.widths)
