"""``yolo:data.yaml``: images and labels/*.txt as Ultralytics lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prunekit.support.errors import DataError, first_line
from prunekit.train.formats.objects import Objects, object_sets
from prunekit.train.formats.pictures import Pictures, pictures_in, size_of
from prunekit.train.images import Shape


def open_yolo(file: Path, shape: Shape) -> tuple[Pictures, Pictures, int]:
    """Both sets and the number of classes; polygons count as the boxes around them."""
    content = _read(file)
    classes = _classes(content, file)
    root = file.parent / str(content.get("path") or ".")
    train, val = (_part(content, root, file, part, len(classes)) for part in ("train", "val"))
    return object_sets(file, shape, classes, (train, val))


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {file}: {first_line(error)}; repair or replace it") from error
    lacking = {"train", "val", "names"} - ({*content} if isinstance(content, dict) else set())
    if lacking:
        raise DataError(f"{file} lacks {', '.join(sorted(lacking))}; it is no data file of YOLO's")
    checked: Mapping[str, Any] = content
    return checked


def _classes(content: Mapping[str, Any], file: Path) -> list[str]:
    names = content["names"]
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{file}: `names` are numbered {sorted(names)}; number them from 0 on")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise DataError(f"{file}: `names` must be a list of the classes' names")
    unnamed = [number for number, name in enumerate(names) if not str(name or "").strip()]
    if unnamed:
        raise DataError(f"{file}: class {unnamed[0]} has no name; repair it")
    return [str(name) for name in names]


def _part(
    content: Mapping[str, Any], root: Path, file: Path, part: str, classes: int
) -> list[Objects]:
    named = content[part]
    places = [named] if isinstance(named, str) else list(named or [])
    pictures = [picture for place in places for picture in _pictures(root, str(place), file, part)]
    return [_objects(picture, classes) for picture in pictures]


def _pictures(root: Path, place: str, file: Path, part: str) -> list[Path]:
    path = root / place
    if path.is_dir():
        return pictures_in(path)
    if path.suffix == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8").split("\n")
        return [root / line.strip() for line in lines if line.strip()]
    raise DataError(f"{file}: `{part}` is {path}, which is neither a folder nor a list of images")


def _objects(picture: Path, classes: int) -> Objects:
    if not picture.is_file():
        raise DataError(f"no image {picture}, which a list names; add it")
    objects = Objects(picture, size_of(picture))
    file = _labels(picture)
    if not file.is_file():
        return objects  # nothing is to be seen in it
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            label, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise DataError(f"{where} is not of numbers: {line.strip()!r}; repair it") from error
        if label != int(label) or not 0 <= label < classes:
            raise DataError(f"{where} has the class {label:g}, which has no name")
        objects.add(_box(values, objects.size, where), int(label), where)
    return objects


def _labels(picture: Path) -> Path:
    """``.../images/a/b.jpg`` to ``.../labels/a/b.txt``: the last folder of that name counts."""
    parts = list(picture.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _box(
    values: list[float], size: tuple[int, int], where: str
) -> tuple[float, float, float, float]:
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        sides = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        sides = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        raise DataError(f"{where} has {len(values)} numbers after the class; 4 are needed")
    left, top, right, bottom = sides
    return left * width, top * height, right * width, bottom * height
