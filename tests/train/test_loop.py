"""A training learns, repeats, is logged, and fits its model and data."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunekit.support.errors import DataError, ModelError, TrainingError, UsageError
from prunekit.train import Data, evaluate, fit, loss_fn
from support.training import CONFIG, same, stripes, tiny, weights


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")


def test_it_learns_and_tells(data: Data) -> None:
    model = tiny()
    told: list[dict[str, Any]] = []
    before = evaluate(model, data.val)
    result = fit(model, data, replace(CONFIG, epochs=12), log=told.append, title="dense")
    assert result.accuracy == evaluate(model, data.val) > max(0.8, before)
    assert not model.training
    assert (result.epochs, result.steps) == (12, 48)
    assert result.best == max(entry["accuracy"] for entry in told) >= result.accuracy
    assert [entry["epoch"] for entry in told] == list(range(1, 13))
    assert {entry["stage"] for entry in told} == {"dense"}
    assert told[-1]["loss"] < 0.7 * told[0]["loss"]
    assert told[-1]["seconds"] == result.seconds > 0
    assert told[-1]["lr"] < told[0]["lr"]


@pytest.mark.parametrize(
    "extra", [{}, {"optimizer": "adamw", "lr": 0.01}, {"mixed_precision": "bf16"}]
)
def test_the_same_seed_gives_the_same_weights(data: Data, extra: dict[str, Any]) -> None:
    config = replace(CONFIG, epochs=1, **extra)
    first, again, other = tiny(), tiny(), tiny()
    fit(first, data, config)
    torch.rand(3)  # where the global generator stands must not matter
    fit(again, data, config)
    fit(other, data, replace(config, seed=1))
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))
    assert "forward" not in vars(first)  # accelerate's patch stays off the user's model
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights(first).values())


def test_a_tiny_set_and_no_epochs(data: Data) -> None:
    few = replace(data, train=stripes(3, 0))
    assert fit(tiny(), few, CONFIG).steps == 3
    model = tiny()
    start = weights(model)
    result = fit(model, data, replace(CONFIG, epochs=0, ema=0.9))
    assert same(start, weights(model))
    assert result.accuracy == evaluate(model, data.val)
    with pytest.raises(DataError, match="the training set has 1 samples"):
        fit(tiny(), replace(data, train=stripes(1, 0)), CONFIG)


def test_a_loss_that_is_not_a_number(data: Data, tmp_path: Path) -> None:
    images, labels = (tensor.clone() for tensor in data.train.tensors)
    images[5] = float("nan")
    bad = replace(data, train=TensorDataset(images, labels))
    with pytest.raises(TrainingError) as caught:
        fit(tiny(), bad, replace(CONFIG, batch_size=70), folder=tmp_path)
    assert "the loss became nan in epoch 1 at step 0 with lr 0.05; lower `lr`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_fit(data: Data) -> None:
    with pytest.raises(ModelError, match="has 2 outputs but the data has 3 classes"):
        fit(tiny(classes=2), data, CONFIG)
    with pytest.raises(ModelError, match="cannot be trained on a batch of 16x1x8x8: Given groups"):
        fit(nn.Sequential(nn.Conv2d(3, 4, 3)), data, CONFIG)
    with pytest.raises(ModelError, match=r"output is \(16, 4, 6, 6\); \(batch, classes\) logits"):
        fit(nn.Sequential(nn.Conv2d(1, 4, 3)), data, CONFIG)
    with pytest.raises(ModelError, match="no trainable parameters"):
        fit(nn.Flatten(), data, CONFIG)
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        fit(tiny(), data, replace(CONFIG, mixed_precision="fp16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(data: Data) -> None:
    with pytest.raises(UsageError, match="`device` is cuda but torch sees no CUDA device"):
        fit(tiny(), data, replace(CONFIG, device="cuda"))


def test_an_interrupt_after_the_checkpoint_waits_for_the_log(
    tmp_path: Path, data: Data, interruptible: None
) -> None:
    rows = []

    def log(row):
        if row["epoch"] == 2 and not rows[1:]:
            signal.raise_signal(signal.SIGINT)
        rows.append(row)

    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), data, CONFIG, folder=tmp_path, log=log)
    assert [row["epoch"] for row in rows] == [1, 2]
    fit(tiny(), data, CONFIG, folder=tmp_path, resume=True, log=log)
    assert [row["epoch"] for row in rows] == [*range(1, CONFIG.epochs + 1)]


class Viewed(nn.Module):
    """As many networks are written: `view` wants what a convolution gives in the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        found: Tensor = self.head(x.view(x.shape[0], -1))
        return found


def test_a_network_that_views_is_trained_and_evaluated() -> None:
    data = Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")
    model = Viewed()
    found = fit(model, data, replace(CONFIG, epochs=2))
    assert found.accuracy == evaluate(model, data.val)


def test_a_label_above_the_outputs_is_named() -> None:
    with pytest.raises(DataError, match="a label is 7, and the model has 3 outputs"):
        loss_fn(Viewed(), (torch.rand(2, 1, 8, 8), torch.tensor([0, 7])))
