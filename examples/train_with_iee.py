"""Exchange channels while you train, in a loop of your own: IEE."""

import torch
import torch.nn.functional as F

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
model = zoo.build("resnet8")
example = torch.randn(1, 3, 16, 16)
graph = pk.trace(model, example)
table = pk.harvest(model, graph, example, pk.Target.parse("fake"))

steps = 60
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
iee = pk.IEE(
    model,
    graph,
    table,
    pk.Budget.parse("latency=40%"),
    criterion=pk.Taylor(),
    schedule=pk.IEESchedule(steps=steps),  # of a trained model: start="dense"
)
for _ in range(steps):
    images, labels = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    F.cross_entropy(iee.model(images), labels).backward()
    iee.step(optimizer)  # steps, clears gradients, and now and then exchanges iee.model

small, plan = iee.model.eval(), iee.plan  # physically slim
print(plan.widths)
print(f"{iee.work / steps:.2f} of the FLOPs of dense training")
pk.save("slim/", small, plan, base="zoo:resnet8")
