"""A loop of one's own around a sparse training, over batches that are a function of the step."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from prunekit.sparsify import METHODS, SparsitySchedule

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "plain": lambda p: torch.optim.SGD(p, 0.05),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 1e-2, weight_decay=0.1),
}
SHORT = {"every": 3, "improve": 2, "explore": 3, "until": 0.9}


def net(seed=0):
    """Convolutions of one, two and three dimensions' kind, norms, biases; inputs divide by four."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


def batch(step, size=6):
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(size, 4, 6, 6, generator=generator)
    return images, torch.randint(0, 4, (size,), generator=generator)


class Loop:
    def __init__(
        self, method="iee", sparsity=0.8, optimizer="sgd", *, steps=40, model=None, **options
    ):
        names = set(SparsitySchedule.__dataclass_fields__)
        own = {key: options.pop(key) for key in {*options} & names}
        self.model = net() if model is None else model
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.sparse = METHODS[method](
            self.model,
            sparsity,
            SparsitySchedule(steps, **{**SHORT, **own}),
            example=torch.randn(1, 4, 6, 6),
            **options,
        )
        self.steps, self.done = steps, 0

    def step(self):
        images, labels = batch(self.done)
        F.cross_entropy(self.model(images), labels).backward()
        self.sparse.step(self.optimizer)
        self.done += 1

    def run(self, count=None):
        for _ in range(self.steps - self.done if count is None else count):
            self.step()
        return self

    def until(self, stage):
        while self.sparse.stage != stage:
            self.step()
        return self

    def weight(self, name):
        return dict(self.model.named_modules())[name].weight

    def state(self):
        """Everything that may not change, by name: weights, buffers, the optimizer's state."""
        found = {n: t.detach().clone() for n, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    found[f"{key} of {name}"] = value.clone()
        return found


def saved(loop):
    """A checkpoint as it would come back from a file."""
    return copy.deepcopy(
        (loop.model.state_dict(), loop.optimizer.state_dict(), loop.sparse.state(), loop.done)
    )


def went_on(checkpoint, *arguments, **options):
    loop = Loop(*arguments, **options)
    model, optimizer, sparse, loop.done = copy.deepcopy(checkpoint)
    loop.model.load_state_dict(model)
    loop.optimizer.load_state_dict(optimizer)
    loop.sparse.load_state(*sparse)
    return loop
