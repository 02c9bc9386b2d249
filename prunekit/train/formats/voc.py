"""``voc:PATH``: Annotations/*.xml, ImageSets/Main/train.txt and val.txt, JPEGImages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from prunekit.support.errors import DataError
from prunekit.train.formats.objects import Objects, object_sets
from prunekit.train.formats.pictures import Pictures, size_of
from prunekit.train.images import Shape

_PARTS = ("train", "val")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def open_voc(path: Path, shape: Shape) -> tuple[Pictures, Pictures, int]:
    """Both sets and the number of classes, which are the names in all annotations.

    Objects marked as difficult count neither as right nor as missed.
    """
    stems = {part: _stems(path, part) for part in _PARTS}
    trees = {stem: _tree(path, stem) for part in _PARTS for stem in stems[part]}
    classes = sorted({_name(item, file) for file, tree in trees.values() for item in tree})
    if not classes:
        raise DataError(f"the annotations in {path / 'Annotations'} have no objects")
    numbers = {name: label for label, name in enumerate(classes)}
    train, val = (
        [_objects(path, stem, *trees[stem], numbers) for stem in stems[part]] for part in _PARTS
    )
    return object_sets(path, shape, classes, (train, val))


def _stems(path: Path, part: str) -> list[str]:
    file = path / "ImageSets" / "Main" / f"{part}.txt"
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}; it names the images of {part}") from error
    return [line.split()[0] for line in lines if line.strip()]


def _tree(path: Path, stem: str) -> tuple[Path, list[ElementTree.Element]]:
    """The objects in a picture's file."""
    file = path / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(file)  # noqa: S314 - expat limits what entities grow to
        return file, tree.getroot().findall("object")
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"cannot read {file}: {error}; repair or replace it") from error


def _name(item: ElementTree.Element, file: Path) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{file}: an object has no name; repair it")
    return name


def _objects(
    path: Path,
    stem: str,
    file: Path,
    items: list[ElementTree.Element],
    numbers: Mapping[str, int],
) -> Objects:
    candidates = [path / "JPEGImages" / f"{stem}{suffix}" for suffix in (".jpg", ".png", ".jpeg")]
    picture = next((candidate for candidate in candidates if candidate.is_file()), None)
    if picture is None:
        raise DataError(f"no image {path / 'JPEGImages' / stem}.jpg, which {file} is of; add it")
    objects = Objects(picture, size_of(picture))
    for item in items:
        texts = [item.findtext(f"bndbox/{side}") for side in _SIDES]
        try:
            left, top, right, bottom = (float(text or "nan") for text in texts)
        except ValueError as error:
            raise DataError(f"{file}: a box is not of numbers ({error}); repair it") from error
        label = numbers[_name(item, file)]
        ignored = item.findtext("difficult") == "1"
        # Pixels are counted from 1 there, and the last one belongs to the box.
        objects.add((left - 1, top - 1, right, bottom), label, str(file), ignored=ignored)
    return objects
