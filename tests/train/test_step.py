"""A step: its gradients clipped, its teacher."""

from dataclasses import replace

import pytest
import torch

from prunekit.support.errors import ModelError, UsageError
from prunekit.train import Data, fit
from support.training import CONFIG, same, stripes, tiny, weights


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")


def test_distillation_pulls_towards_the_teacher(data: Data) -> None:
    teacher = tiny(1)
    fit(teacher, data, replace(CONFIG, epochs=8))
    teacher.train()
    kept = weights(teacher)
    config = replace(CONFIG, epochs=6, distill=1.0, label_smoothing=0.1)
    alone, taught = tiny(), tiny()
    fit(alone, data, replace(config, distill=0.0), teacher=teacher)
    fit(taught, data, config, teacher=teacher)
    assert teacher.training
    assert same(kept, weights(teacher))
    teacher.eval()
    images = data.val.tensors[0]
    with torch.no_grad():
        target = teacher(images).softmax(1)
        far, near = ((m(images).softmax(1) - target).abs().mean() for m in (alone, taught))
    assert near < far
    with pytest.raises(UsageError, match="`distill` is above 0 but there is no `teacher`"):
        fit(tiny(), data, config)
    with pytest.raises(ModelError, match="the teacher has 4 outputs and the model 3"):
        fit(tiny(), data, config, teacher=tiny(classes=4))


def test_clipping_bounds_the_step(data: Data) -> None:
    config = replace(CONFIG, epochs=1, batch_size=70, momentum=0.0, weight_decay=0.0)
    model = tiny()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, data, replace(config, lr=1.0, clip_norm=1e-3))
    moves = [p.detach() - start[name] for name, p in model.named_parameters()]
    moved = sum(float(move.square().sum()) for move in moves)
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)
