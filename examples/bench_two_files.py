"""Time two files in turn, and give their ratio with a confidence interval."""

import torch

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
example = torch.randn(1, 3, 16, 16)
model = zoo.build("resnet8").eval()
graph = pk.trace(model, example)
plan = pk.ChannelPlan.random(graph, keep=0.5, granularity=8)

dense = pk.export(model, example, "dense.onnx")
small = pk.export(pk.slim(model, plan), example, "small.onnx")
result = pk.bench([dense, small], target="onnxruntime:cpu", max_seconds=0.5)
for artifact, timing in zip(result.artifacts, result.measurements, strict=True):
    print(f"{artifact.path}: {timing.median_ms:.4f} ms, {len(timing.samples_ms)} runs")
low, high = result.ratio_ci
print(f"ratio {result.ratio:.3f} [{low:.3f}, {high:.3f}] on {result.environment.device_name}")
