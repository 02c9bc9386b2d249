"""Original idx files, gzipped or not, and those that are damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from prunekit.support.errors import DataError
from prunekit.train import load_data
from prunekit.train.idx import read_idx


def write(path: Path, array: np.ndarray) -> None:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count, end in (("train", 30, ".gz"), ("t10k", 20, "")):
        write(tmp_path / f"{part}-images-idx3-ubyte{end}", rng.integers(0, 256, (count, 28, 28)))
        write(tmp_path / f"{part}-labels-idx1-ubyte{end}", np.arange(count) % 10)
    return tmp_path


@pytest.mark.parametrize("name", ["fashionmnist", "mnist"])
def test_original_files_in_the_folder_itself(folder: Path, name: str):
    data = load_data(f"{name}:{folder}", (1, 28, 28))
    assert (len(data.train), len(data.val), data.num_classes) == (30, 20, 10)
    image, label = data.val[13]
    assert label == 3
    pixels = read_idx(folder / "t10k-images-idx3-ubyte")[13]
    mean, std = {"fashionmnist": (0.286, 0.353), "mnist": (0.131, 0.308)}[name]
    torch.testing.assert_close(image[0], (torch.tensor(pixels / 255.0).float() - mean) / std)


def test_a_missing_part_is_named(folder: Path):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"has no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte"):
        load_data(f"fashionmnist:{folder}", (1, 28, 28))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not an idx file of bytes; fetch the original file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01", "is not an idx file of bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", "should hold 5 bytes and has 3; fetch it again"),
        (b"\x1f\x8bnot gzip", "is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, text: str):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=text):
        read_idx(path)


def test_images_and_labels_of_different_numbers(folder: Path):
    write(folder / "train-labels-idx1-ubyte.gz", np.arange(29))
    with pytest.raises(DataError, match=r"has 30 entries of 2 axes and .* has 29 of 0"):
        load_data(f"mnist:{folder}", (1, 28, 28))
