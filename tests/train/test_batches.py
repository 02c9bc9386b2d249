"""Batches: a function of seed and epoch, shared among processes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from prunekit.support.errors import DataError
from prunekit.train import Data, fit, load_data, loader
from prunekit.train.batches import epoch_batches
from support.training import CONFIG, same, stripes, tiny, weights


def test_batches_that_make_no_sense_are_named():
    images = torch.rand(4, 1, 4, 4)
    for labels, problem in (
        (torch.zeros(4, 3, dtype=torch.int64), "one whole number for each image"),
        (torch.tensor([0, 1, -100, 1]), "a label is -100; labels count from 0"),
    ):
        with pytest.raises(DataError, match=problem):
            list(loader(TensorDataset(images, labels), 4))
    mixed = [(torch.rand(1, size, size), 0) for size in (4, 5)]
    with pytest.raises(DataError, match="different shapes: 1x4x4, 1x5x5; resize"):
        list(loader(mixed, 2))


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    batches = epoch_batches(70, 16, seed=3, epoch=1)
    assert [len(batch) for batch in batches] == [16] * 4
    assert len({index for batch in batches for index in batch}) == 64
    assert epoch_batches(70, 16, 3, 1) == batches
    assert epoch_batches(70, 16, 3, 2) != batches
    assert epoch_batches(70, 16, 4, 1) != batches


def test_ranks_share_every_batch() -> None:
    whole = epoch_batches(70, 16, 0, 0)
    first, second = (epoch_batches(70, 16, 0, 0, rank, 2) for rank in (0, 1))
    for batch, a, b in zip(whole, first, second, strict=True):
        assert len(a) == len(b) == 8
        assert sorted([*a, *b]) == sorted(batch)


def test_fewer_samples_than_a_batch() -> None:
    assert [len(batch) for batch in epoch_batches(5, 16, 0, 0)] == [5]
    assert [len(batch) for batch in epoch_batches(5, 16, 0, 0, 1, 2)] == [2]
    with pytest.raises(DataError, match="has 1 samples; at least 2 are needed"):
        epoch_batches(1, 16, 0, 0)
    with pytest.raises(DataError, match="at least 4 are needed with 2 processes"):
        epoch_batches(3, 16, 0, 0, 0, 2)


def test_loader(data: Data) -> None:
    in_order = [labels for _, labels in loader(data.val, 8)]
    assert [len(labels) for labels in in_order] == [8, 8, 8, 6]
    assert torch.equal(torch.cat(in_order), torch.arange(30) % 3)
    shuffled = [next(iter(loader(data.val, 8, 1)))[0] for _ in range(2)]
    assert torch.equal(*shuffled)
    assert not torch.equal(shuffled[0], next(iter(loader(data.val, 8, 2)))[0])


def test_worker_processes_repeat_their_augmentation(tmp_path: Path) -> None:
    digits = load_data("digits", (1, 8, 8))
    digits = replace(digits, train=torch.utils.data.Subset(digits.train, range(40)))
    config = replace(CONFIG, epochs=1, workers=2)
    first, again, alone = tiny(classes=10), tiny(classes=10), tiny(classes=10)
    fit(first, digits, config, folder=tmp_path)
    fit(again, digits, config)
    assert same(weights(first), weights(again))
    fit(alone, digits, replace(config, workers=0), folder=tmp_path, resume=True)
    assert same(weights(first), weights(alone))  # how many workers is free when resuming
