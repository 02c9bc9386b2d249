"""Tables of labels and numbers, and what is wrong in them."""

import pytest

from prunekit.support.errors import DataError
from prunekit.train import load_data
from support.scenes import CLASSES, write_columns

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(("kind", "binary"), [("multilabel", True), ("regression", False)])
def test_columns_are_targets(tmp_path, kind, binary):
    data = load_data(f"{kind}:{write_columns(tmp_path, binary=binary)}", SHAPE)
    assert (data.task.name, data.num_classes) == (kind, 2)
    assert (len(data.train), len(data.val)) == (8, 2)
    assert data.train.classes == list(CLASSES)
    image, target = data.val[0]
    assert image.shape == SHAPE
    assert bool(((target == 0) | (target == 1)).all()) == binary


def test_a_split_of_one_s_own(tmp_path):
    write_columns(tmp_path, binary=True)
    head, *rows = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([head, *rows[:7]]))
    (tmp_path / "val.csv").write_text("\n".join([head, *rows[7:]]))
    data = load_data(f"multilabel:{tmp_path}", SHAPE)
    assert (len(data.train), len(data.val)) == (7, 3)
    (tmp_path / "val.csv").write_text("\n".join(["image,beam,square", *rows[7:]]))
    with pytest.raises(DataError, match=r"has other columns than train.csv; make them alike"):
        load_data(f"multilabel:{tmp_path}", SHAPE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p00.png,1", "line 2 has 2 columns, the first line 3"),
        ("gone.png,1,0", "line 2 names the image gone.png, which is not there"),
        ("p00.png,1,x", "line 2 is not of numbers"),
        ("p00.png,1,2", "line 2 has other values than 0 and 1"),
        ("p00.png,1,nan", "line 2 has other values than 0 and 1"),
    ],
)
def test_lines_that_are_wrong(tmp_path, line, message):
    write_columns(tmp_path, binary=True)
    head, _, *rows = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([head, line, *rows]))
    with pytest.raises(DataError, match=message):
        load_data(f"multilabel:{tmp_path}", SHAPE)


def test_tables_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"no labels.csv in .*, nor train.csv and val.csv"):
        load_data(f"multilabel:{tmp_path}", SHAPE)
    (tmp_path / "labels.csv").write_text("")
    with pytest.raises(DataError, match=r"labels.csv is empty; its first line names the columns"):
        load_data(f"multilabel:{tmp_path}", SHAPE)
