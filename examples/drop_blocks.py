"""Let whole residual blocks go, where that is the cheapest way to the budget."""

import torch

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
model = zoo.build("resnet20").eval()
example = torch.randn(1, 3, 16, 16)
graph = pk.trace(model, example)
print("blocks that can be left out:", ", ".join(graph.droppable))

table = pk.harvest(model, graph, example, "fake")
scores = pk.score(model, graph, pk.Magnitude())
plan = pk.allocate(graph, scores, table, pk.Budget.parse("latency=20%"), depth=True).plan
small = pk.slim(model, plan)
print("left out:", ", ".join(plan.removed) or "none")
with torch.no_grad():
    assert small(example).shape == model(example).shape
