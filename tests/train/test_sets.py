"""Data sets by name: digits, and MNIST on disk."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from prunekit.support.errors import DataError
from prunekit.train import load_data


def test_digits() -> None:
    data = load_data("digits", (1, 8, 8))
    assert (len(data.train), len(data.val)) == (1438, 359)  # type: ignore[arg-type]
    assert (data.num_classes, data.input_shape, data.name) == (10, (1, 8, 8), "digits")
    again = load_data("digits", (1, 8, 8))
    other = load_data("digits", (1, 8, 8), seed=1)
    counts = [data.val.targets.count(label) for label in range(10)]
    assert min(counts) >= 34
    assert max(counts) <= 37
    assert again.val.targets == data.val.targets
    assert torch.equal(again.val.images, data.val.images)
    assert not torch.equal(other.val.images, data.val.images)
    pixels = torch.stack([data.val[i][0] for i in range(359)])
    assert abs(float(pixels.mean())) < 0.05
    assert abs(float(pixels.std()) - 1) < 0.05


def test_digits_are_resized_and_repeated() -> None:
    data = load_data("digits", (3, 16, 12))
    image, label = data.val[0]
    assert image.shape == (3, 16, 12)
    assert image.dtype == torch.float32
    assert torch.equal(image[0], image[2])
    assert 0 <= label < 10


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"need scikit-learn .*pip install 'prunekit\[digits\]'"):
        load_data("digits", (1, 8, 8))


def idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_mnist_on_disk(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 6)):
        idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 255, (count, 28, 28)))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    data = load_data(f"mnist:{tmp_path}", (3, 16, 16))
    assert (len(data.train), len(data.val), data.num_classes) == (12, 6, 10)  # type: ignore[arg-type]
    assert data.train[11][1] == 1
    assert data.train[0][0].shape == (3, 16, 16)
