"""Prune and repair a trained network with a few images, without a label and without training."""

import torch

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
dense = zoo.build("resnet8", num_classes=10).eval()  # your trained network
images = [torch.randn(32, 3, 16, 16) for _ in range(4)]  # your images, without labels

graph = pk.trace(dense, images[0][:1])
scores = pk.score(dense, graph, pk.Reconstruction(), batches=images)
plan = pk.allocate(graph, scores, None, pk.Budget.parse("macs=50%")).plan
small = pk.slim(dense, plan)

fixed = pk.repair(dense, small, plan, images)
print(f"distance of the outputs from the dense network's: {fixed.before:.3f}, by {fixed.method}:")
print(f"{fixed.after:.3f} on images that nothing was fitted to, in {fixed.seconds:.1f} s")
for name, layer in fixed.layers.items():
    print(f"  {name}: {layer.before:.3f} -> {layer.after:.3f}")
assert fixed.after < fixed.before

# without any image: by the norms' own parameters
free = pk.repair(dense, small, plan, method="bias", example=images[0][:1])
print("without images:", len(free.layers), "layers; not known:", free.left)
