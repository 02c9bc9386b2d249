"""VOC's files: difficult objects, and what is wrong in them."""

import pytest

from prunekit.support.errors import DataError
from prunekit.train import load_data
from support.scenes import write_voc

SHAPE = (3, 32, 40)


def replaced(root, old, new, name="train_p00.xml"):
    file = write_voc(root) / "Annotations" / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return f"voc:{root}"


def test_difficult_objects_do_not_count(tmp_path):
    spec = replaced(tmp_path, "<difficult>0", "<difficult>1", "val_p00.xml")
    assert load_data(spec, SHAPE).val[0][1]["iscrowd"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmax>", "<xmax>9", "train_p00.xml: the box .* is outside of its image"),
        ("<ymin>", "<ymin>x", "a box is not of numbers"),
        ("<xmin>", "<left>", "cannot read .*train_p00.xml: mismatched tag"),
        ("<bndbox>", "<box>", "cannot read .*train_p00.xml"),
        ("</object>", "</object><object/>", "train_p00.xml: an object has no name; repair it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    with pytest.raises(DataError, match=message):
        load_data(replaced(tmp_path, old, new), SHAPE)


def test_files_that_are_not_there(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "JPEGImages/train_p01.png").unlink()
    with pytest.raises(DataError, match=r"no image .*train_p01.jpg, which .*train_p01.xml is of"):
        load_data(f"voc:{tmp_path}", SHAPE)
    (tmp_path / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*val.txt: .*; it names the images of val"):
        load_data(f"voc:{tmp_path}", SHAPE)
