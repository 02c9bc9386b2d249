"""YOLO's files: polygons, lists of images, and what is wrong in them."""

import pytest

from prunekit.support.errors import DataError
from prunekit.train import load_data
from support.scenes import write_yolo

SHAPE = (3, 32, 40)


def test_polygons_are_the_boxes_around_them(tmp_path):
    file = write_yolo(tmp_path)
    (tmp_path / "labels/val/p00.txt").write_text("1 0.25 0.25 0.5 0.25 0.5 0.75\n")
    (_, target) = load_data(f"yolo:{file}", SHAPE).val[0]
    assert target["boxes"].tolist() == [[10.0, 8.0, 20.0, 24.0]]


def test_a_list_of_images_and_numbered_names(tmp_path):
    file = write_yolo(tmp_path)
    (tmp_path / "some.txt").write_text("images/val/p01.png\n")
    file.write_text("train: [images/train]\nval: some.txt\nnames: {0: bar, 1: square}\n")
    data = load_data(f"yolo:{file}", SHAPE)
    assert len(data.val) == 1
    assert data.task.class_names == ("bar", "square")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "p00.txt, line 1 has the class 2, which has no name"),
        ("0 0.5 0.5 0.1", "line 1 has 3 numbers after the class; 4 are needed"),
        ("0 0.9 0.5 0.5 0.1", "line 1: the box .* is outside of its image"),
        ("0 0.5 0.5 0 0.1", "line 1: the box .* has no area"),
        ("bar 0.5 0.5 0.1 0.1", "line 1 is not of numbers: 'bar 0.5"),
    ],
)
def test_lines_that_are_wrong(tmp_path, line, message):
    file = write_yolo(tmp_path)
    (tmp_path / "labels/train/p00.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_data(f"yolo:{file}", SHAPE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: a\nval: b\n", "lacks names; it is no data file of YOLO's"),
        (
            "train: images/train\nval: gone\nnames: [bar, square]\n",
            "`val` is .*gone, which is neither",
        ),
        ("train: images/train\nval: images/val\nnames: {1: bar}\n", r"`names` are numbered \[1\]"),
        ("train: images/train\nval: images/val\nnames: ['', bar]\n", "class 0 has no name"),
        ("names: [", "cannot read .*data.yaml"),
    ],
)
def test_data_files_that_are_wrong(tmp_path, text, message):
    file = write_yolo(tmp_path)
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        load_data(f"yolo:{file}", SHAPE)
