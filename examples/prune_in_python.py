"""Prune a network of your own in Python: trace, score, allocate, slim."""

import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 64, 3, padding=1, bias=False),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
    nn.BatchNorm2d(128),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(128, 10),
).eval()
example = torch.randn(1, 3, 16, 16)  # a tensor, a tuple or a dict of inputs
batches = [(torch.randn(16, 3, 16, 16), torch.randint(10, (16,))) for _ in range(4)]


def loss_fn(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


target = pk.Target.parse("fake")  # "onnxruntime:cpu" for real; fake computes its timings
graph = pk.trace(model, example)
table = pk.harvest(model, graph, example, target)
scores = pk.score(model, graph, pk.Taylor(), loss_fn, batches)
plan = pk.allocate(graph, scores, table, pk.Budget.parse("latency=50%")).plan

small = pk.slim(model, plan)  # a new module; `model` is untouched
masked = pk.mask_(model, plan)  # the same structure by zeros, in place
with torch.no_grad():
    assert torch.allclose(small(example), masked(example), atol=1e-4)
print("widths", plan.widths)
print(f"predicted {pk.predict(graph, plan, table).ms:.3f} ms")
