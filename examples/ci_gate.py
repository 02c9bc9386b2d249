"""A gate for continuous integration: exit status 0 passes, 1 fails, 3 cannot tell."""

import torch

import prunekit as pk
from prunekit import zoo
from prunekit.cli.main import run

torch.manual_seed(0)
example = torch.randn(1, 3, 16, 16)
model = zoo.build("resnet8").eval()
graph = pk.trace(model, example)
pk.export(model, example, "new.onnx")
pk.export(pk.slim(model, pk.ChannelPlan.random(graph, keep=0.5)), example, "released.onnx")

# the same as: prunekit check new.onnx --baseline released.onnx --threshold 5% --target fake
gate = ["--baseline", "released.onnx", "--threshold", "5%", "--target", "fake"]
same = run(["check", "released.onnx", *gate])
slower = run(["check", "new.onnx", *gate])
print("released against itself:", same)
print("the dense network against the pruned one:", slower)
assert (same, slower) == (0, 1)
