"""Data from one's own code."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from prunekit.support.errors import DataError
from prunekit.train import Data, load_data, loader

HEAD = """
import torch
from torch.utils.data import Dataset, Subset, TensorDataset
from prunekit.train import Data
def images(n, labels, shape=(1, 8, 8)):
    return TensorDataset(torch.zeros(n, *shape), torch.tensor(labels))
class Named(Dataset):
    def __init__(self, classes, labels):
        self.classes, self.labels = classes, labels
    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return torch.zeros(1, 8, 8), self.labels[i]
class Bare(Named):
    def __init__(self, marks): self.marks = marks
    def __len__(self): return len(self.marks)
    def __getitem__(self, i): return torch.zeros(1, 8, 8), self.marks[i]
"""


def from_factory(tmp_path: Path, body: str) -> Data:
    file = tmp_path / "mine.py"
    file.write_text(f"{HEAD}\n{body}")
    return load_data(f"{file}:make", (1, 8, 8), seed=5)


@pytest.mark.parametrize(
    ("body", "classes"),
    [
        ("make = lambda: (images(3, [0, 1, 2]), images(1, [1]))", 3),
        ("make = lambda: [Subset(images(4, [0, 1, 2, 1]), [0, 1, 3]), images(1, [1])]", 2),
        ("make = lambda: (Named(['a', 'b', 'c', 'd'], [0, 1]), Named(None, [1]))", 4),
        ("make = lambda: (Bare([0, 4]), Bare([4]))", 5),
        ("make = lambda: Data(images(2, [0, 1]), images(1, [0]), 7, (1, 8, 8), 'seven')", 7),
    ],
)
def test_factories(tmp_path: Path, body: str, classes: int) -> None:
    assert from_factory(tmp_path, body).num_classes == classes


def test_a_factory_gets_the_shape_and_seed_it_asks_for(tmp_path: Path) -> None:
    body = """
def make(input_shape, seed):
    assert seed == 5
    return images(2, [0, 1], input_shape), images(2, [0, 1], input_shape)
"""
    assert from_factory(tmp_path, body).train[0][0].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("make = lambda: 1 / 0", "mine.py:make failed: ZeroDivisionError: division by zero"),
        ("raise OSError('no disk')", "mine.py fails on import: OSError: no disk"),
        ("raise SystemExit(0)", "mine.py fails on import: SystemExit: 0"),
        ("def make(): raise SystemExit", "mine.py:make failed: SystemExit"),
        ("make = 3", "has no callable 'make'"),
        ("make = lambda: 3", "returned int; it must return prunekit.train.Data or a (train, val)"),
        ("make = lambda: (images(2, [0, 0]), images(1, [0]))", "only one class"),
        (
            "make = lambda: (images(2, [0, 1]), images(1, [2]))",
            "val has labels that train lacks: 2",
        ),
        ("make = lambda: (images(2, [-1, 1]), images(1, [1]))", "has the label -1"),
        ("make = lambda: (images(0, []), images(1, [1]))", "mine.py:make (train) is empty"),
        ("make = lambda: (iter([]), images(1, [1]))", "(train) is a list_iterator"),
        (
            "make = lambda: (Named(['a', 'b'], [0, 1]), Named(['a', 'c'], [0, 1]))",
            "the classes of train and val differ in b, c",
        ),
        (
            "make = lambda: (Named(['a', 'b'], [0, 1]), Named(['b', 'a'], [0, 1]))",
            "the classes of train and val come in another order",
        ),
        (
            "make = lambda: (images(2, [0, 1], (3, 8, 8)), images(1, [1]))",
            "(train) has images of 3x8x8, the model's input is 1x8x8; use --input with 3x8x8",
        ),
        (
            "make = lambda: (images(2, [0, 1]), images(2, [0, 1], (1, 9, 8)))",
            "(val) has images of 1x9x8",
        ),
        (
            "make = lambda: Data(images(2, [0, 1]), images(1, [0]), 2, (3, 8, 8), 'x')",
            "has images of 3x8x8, the model's input is 1x8x8",
        ),
        (
            "make = lambda: Data(images(2, [5, 1]), images(1, [0]), 2, (1, 8, 8), 'x')",
            "gives the label 5; whole numbers from 0 to 1 are needed",
        ),
        (
            "make = lambda: Data(images(2, [0.5, 1]), images(1, [0]), 2, (1, 8, 8), 'x')",
            "gives the label 0.5; whole numbers",
        ),
        (
            "make = lambda: Data(['a'], ['b'], 2, (1, 8, 8), 'x')",
            "gives str samples; (image, label) pairs are needed",
        ),
        (
            "make = lambda: Data([([1], 0)], ['b'], 2, (1, 8, 8), 'x')",
            "gives images as list; float tensors are needed",
        ),
    ],
)
def test_factory_faults_are_named(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        from_factory(tmp_path, body)
    assert message in str(caught.value)
    assert "mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8, 1), (8,)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8])
def test_labels_are_made_one_whole_number_each(shape, kind):
    labels = torch.arange(8, dtype=kind).reshape(shape)
    ((_, found),) = loader(TensorDataset(torch.rand(8, 1, 4, 4), labels), 8)
    assert found.dtype == torch.int64
    assert found.tolist() == list(range(8))


@pytest.mark.parametrize("parts", [("training", "validation"), ("Train", "Val")])
def test_parts_of_a_data_set_are_no_classes(tmp_path, parts):
    for part in parts:
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (4, 4)).save(tmp_path / part / kind / f"{number}.png")
    with pytest.raises(DataError, match=r"which all hold the folders cat, dog; .* rename them"):
        load_data(f"imagefolder:{tmp_path}", (1, 4, 4))
