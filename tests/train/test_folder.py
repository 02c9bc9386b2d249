"""Folders of images: split, named faults, broken files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit.support.errors import DataError
from prunekit.train import load_data


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


def test_what_archives_and_notebooks_leave_is_left_out_and_told(tmp_path: Path, capsys) -> None:
    folders(tmp_path)
    picture(tmp_path / "cat" / ".ipynb_checkpoints" / "0-checkpoint.jpg", 40)
    picture(tmp_path / "__MACOSX" / "cat" / "0.jpg", 40)
    (tmp_path / "dog" / "._0.jpg").write_bytes(b"\0\5\26\7 Mac OS X")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"x")
    data = load_data(f"imagefolder:{tmp_path}", (3, 8, 8), seed=1)
    assert (len(data.train), len(data.val), data.num_classes) == (8, 2, 2)  # type: ignore[arg-type]
    first = tmp_path / "__MACOSX" / "cat" / "0.jpg"
    assert capsys.readouterr().err.splitlines()[0] == (
        f"note: 3 files left out in {tmp_path}, hidden or left by an archive: {first} first"
    )
