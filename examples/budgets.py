"""Several budgets at once, layers that stay whole, and what became of every group."""

import torch

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
model = zoo.build("resnet8").eval()
example = torch.randn(1, 3, 16, 16)
whole = pk.trace(model, example)
graph = whole.constrained(keep=["blocks.2.conv1"], min_width=0.25)
table = pk.harvest(model, graph, example, "fake")
scores = pk.score(model, graph, pk.Magnitude())

allocation = pk.allocate(
    graph,
    scores,
    table,
    pk.Budget.parse("latency=60%"),
    limits=[pk.Budget.parse("macs=50%"), pk.Budget.parse("memory=80%")],
)
widths = allocation.plan.widths
assert graph.macs(widths) <= 0.5 * graph.macs({})
assert graph.memory(widths) <= 0.8 * graph.memory({})
assert widths["blocks.2.conv1"] == graph.group("blocks.2.conv1").size
for name, group in pk.explain(graph, allocation.plan, table, scores).items():
    print(f"{name}: {group.before} -> {group.after}, saves {1e3 * group.saved:.1f} us")
