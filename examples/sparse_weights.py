"""Most weights at zero, in a loop of your own: RigL."""

import torch
import torch.nn.functional as F

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
model = zoo.build("resnet8")
example = torch.randn(1, 3, 16, 16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
schedule = pk.sparsify.SparsitySchedule(steps=60)  # its fields are the method's options
sparse = pk.sparsify.RigL(model, sparsity=0.9, schedule=schedule, example=example)
for _ in range(60):
    images, labels = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    F.cross_entropy(model(images), labels).backward()
    sparse.step(optimizer)  # now and then exchanges weights

print(f"{sparse.plan.sparsity:.1%} zeros")
print(f"{sparse.work / 60:.2f} of the FLOPs of dense training")
pk.save("sparse/", model.eval(), sparse.plan, base="zoo:resnet8")
