"""Masks: they follow their pictures, and what is wrong with them."""

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit.support.errors import DataError
from prunekit.train import load_data
from support.scenes import parts, write_masks

SHAPE = (3, 32, 40)


def test_masks_are_class_numbers(tmp_path):
    data = load_data(f"segmentation:{write_masks(tmp_path)}", SHAPE)
    assert (data.task.name, data.num_classes, len(data.train)) == ("segmentation", 3, 6)
    image, mask = data.val[0]
    assert image.shape == SHAPE
    assert mask.dtype == torch.int64
    assert np.array_equal(mask.numpy(), parts()["val"][0].mask)
    images, masks = next(iter(data.train_batches(4, 0)))
    assert (images.shape, masks.shape) == ((4, *SHAPE), (4, *SHAPE[1:]))


def test_masks_follow_their_pictures(tmp_path):
    data = load_data(f"segmentation:{write_masks(tmp_path)}", SHAPE)
    torch.manual_seed(0)
    for index in list(range(6)) * 3:
        image, mask = data.train[index]
        inside = mask > 0
        if inside.sum() > 30:
            assert (
                float(image.mean(0)[inside].median()) > float(image.mean(0)[~inside].median()) + 1
            )


def test_without_a_split_a_fifth_is_held_out(tmp_path):
    write_masks(tmp_path)
    for folder in ("images", "masks"):
        for file in (tmp_path / folder / "train").iterdir():
            file.rename(tmp_path / folder / file.name)
        for file in (tmp_path / folder / "val").iterdir():
            file.unlink()
        for part in ("train", "val"):
            (tmp_path / folder / part).rmdir()
    (tmp_path / "classes.txt").unlink()
    data = load_data(f"segmentation:{tmp_path}", SHAPE, seed=1)
    assert (len(data.train), len(data.val), data.num_classes) == (5, 1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "masks/train/p00.png").unlink(), "no mask .*p00.png for the image"),
        (
            lambda root: Image.new("L", (8, 8)).save(root / "masks/train/p00.png"),
            "is 8 x 8 and its image p00.png 40 x 32; make them alike",
        ),
        (
            lambda root: Image.new("L", (40, 32), 7).save(root / "masks/val/p00.png"),
            "has the class 7, and classes.txt has 3 names",
        ),
        (
            lambda root: Image.new("RGB", (40, 32)).save(root / "masks/val/p00.png"),
            "is in colour; a class number for each pixel is needed",
        ),
        (lambda root: (root / "masks").rename(root / "labels"), "no folder .*masks; pictures lie"),
        (lambda root: (root / "images/val").rename(root / "other"), "no folder .*val; add it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    change(write_masks(tmp_path))
    with pytest.raises(DataError, match=message):
        load_data(f"segmentation:{tmp_path}", SHAPE)
