"""``coco:PATH``: annotations/instances_train*.json and instances_val*.json, with their images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.support.errors import DataError
from prunekit.train.formats.objects import Objects, object_sets
from prunekit.train.formats.pictures import Pictures, size_of
from prunekit.train.images import Shape

Categories = dict[int, str]
"""The names of classes by the file's numbers."""


def open_coco(path: Path, shape: Shape) -> tuple[Pictures, Pictures, int]:
    """Both sets and the number of classes; crowds count neither as right nor as missed."""
    files = [_file(path, part) for part in ("train", "val")]
    contents = [_read(file) for file in files]
    known, others = (_categories(c, f) for c, f in zip(contents, files, strict=True))
    if known != others:
        differing = sorted({*known.items()} ^ {*others.items()})
        raise DataError(
            f"{files[1]}: its categories differ from those of {files[0].name} in "
            f"{differing[0][1]!r}; give both the same"
        )
    numbers = {category: label for label, category in enumerate(sorted(known))}
    train, val = (
        _objects(content, file, path, numbers)
        for content, file in zip(contents, files, strict=True)
    )
    classes = [known[category] for category in sorted(known)]
    return object_sets(path, shape, classes, (train, val))


def _file(path: Path, part: str) -> Path:
    folder = path / "annotations"
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; COCO's annotations lie there")
    files = sorted(folder.glob(f"instances_{part}*.json"))
    if not files:
        raise DataError(f"no instances_{part}*.json in {folder}; add it")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{folder} has several: {names}; leave one of them there")
    return files[0]


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}; repair or replace it") from error
    keys = {*content} if isinstance(content, dict) else set()
    if lacking := {"images", "annotations", "categories"} - keys:
        names = ", ".join(sorted(lacking))
        raise DataError(f"{file} lacks {names}; it is no COCO file of instances")
    checked: Mapping[str, Any] = content
    return checked


def _categories(content: Mapping[str, Any], file: Path) -> Categories:
    names: Categories = {}
    for category in content["categories"]:
        name = str(category.get("name") or "").strip()
        if "id" not in category or not name:
            raise DataError(f"{file}: a category has no id or no name; repair it")
        names[int(category["id"])] = name
    if not names:
        raise DataError(f"{file} has no categories; add them")
    return names


def _objects(
    content: Mapping[str, Any], file: Path, path: Path, numbers: Mapping[int, int]
) -> list[Objects]:
    folder = _images(path, file)
    pictures: dict[int, Objects] = {}
    for image in content["images"]:
        picture = folder / str(image["file_name"])
        if not picture.is_file():
            raise DataError(f"{file} names the image {picture}, which is not there; add it")
        sides = image.get("width"), image.get("height")
        size = (int(sides[0]), int(sides[1])) if all(sides) else size_of(picture)
        pictures[image["id"]] = Objects(picture, size)
    for annotation in content["annotations"]:
        where = f"{file}, annotation {annotation.get('id', '?')}"
        objects = pictures.get(annotation.get("image_id"))
        if objects is None:
            raise DataError(
                f"{where} is of the image {annotation.get('image_id')}, which the file has not"
            )
        label = numbers.get(annotation.get("category_id"))
        if label is None:
            raise DataError(
                f"{where} is of the category {annotation.get('category_id')}, which has no name"
            )
        left, top, width, height = map(float, annotation["bbox"])
        crowd = bool(annotation.get("iscrowd", 0))
        objects.add((left, top, left + width, top + height), label, where, ignored=crowd)
    return list(pictures.values())


def _images(path: Path, file: Path) -> Path:
    """The folder of the images that ``instances_NAME.json`` is of."""
    name = file.stem.removeprefix("instances_")
    part = "train" if name.startswith("train") else "val"
    candidates = [path / name, path / "images" / name, path / part, path / "images" / part]
    candidates += [path / "images"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(f"no folder of images for {file}; they belong into {candidates[0]}")
