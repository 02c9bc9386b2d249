import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from prunekit.support.errors import DataError
from prunekit.train import Data, load_data, loader
from prunekit.train.factory import labels_of
from prunekit.train.images import TensorImages, split


def picture(path: Path, shade: int = 100, size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 60, (size[1], size[0], 3))
    Image.fromarray((noise + shade).astype(np.uint8)).save(path)
    return path


def folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> Path:
    for number, name in enumerate(classes):
        for index in range(count):
            suffix = "jpg" if index % 2 else "png"
            picture(root / name / f"{index}.{suffix}", 40 * number + index)
    return root


# --- splits and tensors


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


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"need scikit-learn .*pip install 'prunekit\[digits\]'"):
        load_data("digits", (1, 8, 8))


# --- image folders


def test_imagefolder_is_split_by_class(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = load_data(f"imagefolder:{tmp_path}", (3, 8, 8), seed=1)
    assert (len(data.train), len(data.val), data.num_classes) == (8, 2, 2)  # type: ignore[arg-type]
    assert sorted(data.val.targets) == [0, 1]
    assert not {*data.train.paths} & {*data.val.paths}
    assert data.train[0][0].shape == data.val[0][0].shape == (3, 8, 8)
    assert torch.equal(data.val[0][0], data.val[0][0])
    grey = load_data(f"imagefolder:{tmp_path}", (1, 12, 8), seed=1)
    assert grey.train[0][0].shape == grey.val[0][0].shape == (1, 12, 8)
    assert grey.val.paths == data.val.paths


def test_imagefolder_with_train_and_val(tmp_path: Path) -> None:
    folders(tmp_path / "train")
    folders(tmp_path / "val", count=2)
    data = load_data(f"imagefolder:{tmp_path}", (3, 8, 8))
    assert (len(data.train), len(data.val)) == (10, 4)  # type: ignore[arg-type]
    assert data.train.classes == ["cat", "dog"]


def imagefolder_error(path: Path, shape: tuple[int, int, int] = (3, 8, 8)) -> str:
    with pytest.raises(DataError) as caught:
        load_data(f"imagefolder:{path}", shape)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_imagefolder_faults_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    assert imagefolder_error(missing) == f"no such folder: {missing}"

    empty = tmp_path / "empty"
    empty.mkdir()
    assert imagefolder_error(empty).startswith(f"no class folders in {empty}; put each class's")

    single = folders(tmp_path / "single", ("cat",))
    assert "only one class folder" in imagefolder_error(single)
    assert str(single) in imagefolder_error(single)

    bare = folders(tmp_path / "bare")
    (bare / "eel").mkdir()
    assert f"no images in class folder {bare / 'eel'}" in imagefolder_error(bare)

    half = tmp_path / "half"
    folders(half / "train")
    assert f"{half} has train/ but no val/; add {half / 'val'}" in imagefolder_error(half)

    other = tmp_path / "other"
    folders(other / "train")
    folders(other / "val", ("cat", "dog", "eel"))
    assert "class eel is in val/ but not in train/" in imagefolder_error(other)

    assert "1 or 3 channels, not 4" in imagefolder_error(bare, (4, 8, 8))


@pytest.mark.parametrize("kind", ["text", "cut.png", "cut.jpg"])
def test_a_broken_image_is_named(tmp_path: Path, kind: str) -> None:
    root = folders(tmp_path)
    if kind == "text":
        victim = root / "dog" / "1.jpg"
        victim.write_text("hello")
    else:
        victim = picture(root / "dog" / f"x{kind}", size=(200, 160))
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    message = imagefolder_error(root)
    assert message.startswith(f"cannot read image {victim}: ")
    assert message.endswith("; remove or replace it")


def test_an_image_that_breaks_later_is_named_too(tmp_path: Path) -> None:
    data = load_data(f"imagefolder:{folders(tmp_path)}", (3, 8, 8))
    data.train.paths[0].write_text("gone")
    with pytest.raises(DataError, match=str(data.train.paths[0])):
        data.train[0]


# --- sets on disk


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


@pytest.mark.parametrize(
    ("name", "cls"), [("cifar10", "CIFAR10"), ("svhn", "SVHN"), ("mnist", "MNIST")]
)
def test_a_set_that_is_not_there(tmp_path: Path, name: str, cls: str) -> None:
    with pytest.raises(DataError, match=f"no complete {cls} in {tmp_path}; fetch it with"):
        load_data(f"{name}:{tmp_path}", (3, 16, 16))
    with pytest.raises(DataError, match="no such folder"):
        load_data(f"{name}:{tmp_path / 'gone'}", (3, 16, 16))


# --- what the user wrote


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagnet", "unknown data 'imagnet'; known: digits, imagefolder:PATH, cifar10:PATH"),
        ("cifra10:/data", "cannot import 'cifra10' (in 'cifra10:/data')"),
        ("cifra10:/data", "; known data: digits, imagefolder:PATH, cifar10:PATH"),
        ("imagefolder:", "data 'imagefolder:' lacks its folder; write imagefolder:PATH"),
        ("cifar10", "data 'cifar10' lacks its folder; write cifar10:PATH"),
        ("json:nothing", "json has no callable 'nothing'"),
        ("nowhere/data.py:make", "no file nowhere/data.py"),
        ("digits:8", "cannot import 'digits' (in 'digits:8'): ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_understood(spec: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(spec, (3, 8, 8))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_alone_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"write imagefolder:{tmp_path}"):
        load_data(str(tmp_path), (3, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8), (3, 0, 8), (3, 8.0, 8)])
def test_a_shape_that_is_none(shape: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="`input_shape` must be"):
        load_data("digits", shape)


# --- factories

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


def test_labels_of_a_subset_of_a_tensor_dataset() -> None:
    whole = TensorDataset(torch.zeros(3, 1), torch.tensor([4, 5, 6]))
    assert labels_of(Subset(whole, [2, 0]), "x") == [6, 4]


@pytest.mark.parametrize("shape", [(8, 1), (8,)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8])
def test_labels_are_made_one_whole_number_each(shape, kind):
    labels = torch.arange(8, dtype=kind).reshape(shape)
    ((_, found),) = loader(TensorDataset(torch.rand(8, 1, 4, 4), labels), 8)
    assert found.dtype == torch.int64
    assert found.tolist() == list(range(8))


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


@pytest.mark.parametrize("parts", [("training", "validation"), ("Train", "Val")])
def test_parts_of_a_data_set_are_no_classes(tmp_path, parts):
    for part in parts:
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (4, 4)).save(tmp_path / part / kind / f"{number}.png")
    with pytest.raises(DataError, match=r"which all hold the folders cat, dog; .* rename them"):
        load_data(f"imagefolder:{tmp_path}", (1, 4, 4))


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
