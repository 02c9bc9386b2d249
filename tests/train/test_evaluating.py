"""Evaluation leaves the model as it was."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.support.errors import DataError
from prunekit.train import Data, evaluate, loss_fn
from support.training import same, stripes, tiny, weights


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")


def test_evaluate_and_loss_leave_the_model_as_it_was(data: Data) -> None:
    model = tiny().train()
    model.drop.eval()
    start = weights(model)
    images, labels = data.val.tensors
    expected = float((tiny().eval()(images).argmax(1) == labels).float().mean())
    assert evaluate(model, data.val, batch_size=7) == pytest.approx(expected)
    assert model.training
    assert model.bn.training
    assert not model.drop.training
    assert same(start, weights(model))
    loss = loss_fn(model.eval(), (images, labels))
    assert loss.requires_grad
    reference = nn.CrossEntropyLoss()(model(images), labels)
    assert torch.allclose(loss, reference)
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(model, TensorDataset(images[:0], labels[:0]))
