"""COCO's files: crowds, and what is wrong in them."""

import json

import pytest

from prunekit.support.errors import DataError
from prunekit.train import load_data
from support.scenes import write_coco

SHAPE = (3, 32, 40)


def changed(root, change, part="train"):
    file = write_coco(root) / "annotations" / f"instances_{part}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return f"coco:{root}"


def test_crowds_are_left_out_of_training_and_told_in_validation(tmp_path):
    spec = changed(tmp_path, lambda c: c["annotations"][0].update(iscrowd=1))
    assert len(load_data(spec, SHAPE).train.entries[0].labels) == 2
    file = tmp_path / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    data = load_data(spec, SHAPE)
    assert data.val[0][1]["iscrowd"].tolist() == [1, 0]
    assert all(len(data.train[0][1]["labels"]) <= 1 for _ in range(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0].update(bbox=[30, 0, 30, 5]),
            "annotation 0: the box .* outs",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[3, 3, 0, 5]),
            "annotation 0: the box .* no area",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=99),
            "annotation 0 is of the image 99, which",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=5),
            "is of the category 5, which has no n",
        ),
        (
            lambda c: c["images"][0].update(file_name="gone.png"),
            "gone.png, which is not there; add",
        ),
        (lambda c: c["categories"][0].update(name=" "), "a category has no id or no name"),
        (lambda c: c["categories"][0].update(name="beam"), "its categories differ from those of"),
        (lambda c: c.pop("annotations"), "lacks annotations; it is no COCO file of instances"),
        (lambda c: c["annotations"].clear(), "the training set of .* has no objects"),
        (
            lambda c: (c["images"].clear(), c["annotations"].clear()),
            "training set of .* has no imag",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        load_data(changed(tmp_path, change), SHAPE)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_data(f"coco:{tmp_path / 'gone'}", SHAPE)
    with pytest.raises(DataError, match=r"no folder .*annotations; COCO's annotations lie there"):
        load_data(f"coco:{tmp_path}", SHAPE)
    write_coco(tmp_path)
    (tmp_path / "annotations/instances_val.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*instances_val.json"):
        load_data(f"coco:{tmp_path}", SHAPE)
    (tmp_path / "annotations/instances_val.json").unlink()
    with pytest.raises(DataError, match=r"no instances_val\*.json in"):
        load_data(f"coco:{tmp_path}", SHAPE)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "train/p00.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read image .*p00.png: not an image file; remove"):
        load_data(f"coco:{tmp_path}", SHAPE)
