"""Images in memory: split by class, shifted, repeated from a generator."""

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit.support.errors import DataError
from prunekit.train import load_data
from prunekit.train.images import TensorImages, split


def test_split_takes_a_share_of_every_class() -> None:
    labels = [0] * 50 + [1] * 10 + [2] * 2
    train, val = split(labels, seed=0)
    assert sorted([*train, *val]) == list(range(62))
    counts = [sum(labels[i] == label for i in val) for label in range(3)]
    assert counts == [10, 2, 1]
    assert split(labels, seed=0) == (train, val)
    assert split(labels, seed=1) != (train, val)


def test_split_names_a_class_of_one() -> None:
    with pytest.raises(DataError, match="class dog has a single image"):
        split([0, 0, 1], 0, ["cat", "dog"])


def test_augmentation_follows_the_generator_and_spares_val() -> None:
    data = load_data("digits", (1, 8, 8))
    assert torch.equal(data.val[3][0], data.val[3][0])
    torch.manual_seed(0)
    first = [data.train[3][0] for _ in range(8)]
    torch.manual_seed(0)
    again = [data.train[3][0] for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(first[0], other) for other in first[1:])


def test_a_shift_moves_the_image_and_fills_with_background() -> None:
    images = torch.zeros(1, 1, 5, 5)
    images[0, 0, 2, 2] = 1
    data = TensorImages(images, [0], (1, 5, 5), peak=1, mean=[0], std=[1], shift=(1, 1))
    torch.manual_seed(0)
    seen = {tuple(data[0][0].nonzero()[0].tolist()[1:]) for _ in range(200)}
    assert seen == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}
    assert float(data[0][0].sum()) == 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_of_16_bits(tmp_path, suffix):
    grey = np.linspace(0, 65535, 64).reshape(8, 8)
    for kind, bits in (("deep", grey.astype(np.uint16)), ("plain", (grey / 257).astype(np.uint8))):
        (tmp_path / kind).mkdir()
        for number in range(5):
            Image.fromarray(bits).save(tmp_path / kind / f"{number}.{suffix}")
    data = load_data(f"imagefolder:{tmp_path}", (1, 8, 8))
    by_class = {label: image for image, label in (data.val[0], data.val[1])}
    assert (by_class[0] - by_class[1]).abs().max() < 0.02


def test_images_of_floats_are_refused(tmp_path):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(2):
            Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / kind / f"{number}.tif")
    with pytest.raises(DataError, match="pixels are of mode F; 8 or 16 bits are read"):
        load_data(f"imagefolder:{tmp_path}", (1, 8, 8))
