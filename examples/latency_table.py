"""A latency table by hand: harvest, save, predict with an interval, allocate."""

import torch

import prunekit as pk
from prunekit import zoo
from prunekit.profiling import HarvestPlan

torch.manual_seed(0)
model = zoo.build("resnet8").eval()
example = torch.randn(1, 3, 16, 16)
graph = pk.trace(model, example)
target = pk.Target.parse("fake")  # "onnxruntime:cpu" for real

pk.harvest(model, graph, example, target, plan=HarvestPlan(nets=6)).save("table.json")
table = pk.LatencyTable.load("table.json")
print(f"{len(table.entries)} layer shapes in blocks of {table.granularity} channels")
print(f"error on networks left out: {table.calibration.mape:.1%}")

scores = pk.score(model, graph, pk.Magnitude())
for share in ("70%", "50%", "30%"):
    allocation = pk.allocate(graph, scores, table, pk.Budget.parse(share))
    ms = pk.predict(graph, allocation.plan, table)
    print(
        f"{share}: {ms.ms:.4f} ms [{ms.low_ms:.4f}, {ms.high_ms:.4f}], "
        f"{allocation.value:.0%} of the saliency, gap {allocation.gap:.2%}"
    )
