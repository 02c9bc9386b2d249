"""Images in class folders, looked through before training so that nothing breaks in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunekit.support.errors import DataError, first_line
from prunekit.support.progress import say, track
from prunekit.train.images import ImageFiles, Shape, split

__all__ = ["open_folder", "open_unlabelled"]

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FEWEST = 10
"""Images without labels, at least: some are held out."""
_LEFTOVERS = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What archives and file managers leave behind, beside all that is hidden."""
# The usual ImageNet statistics; for grey, their means.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def open_folder(path: Path, shape: Shape, seed: int) -> tuple[ImageFiles, ImageFiles, int]:
    """Training set, validation set and number of classes of the images under ``path``.

    Either ``path/train`` and ``path/val`` hold one folder per class, or ``path`` does, and a fifth
    of every class is held out by ``seed``. Raises DataError naming the folder or file at fault.
    """
    if shape[0] not in (1, 3):
        raise DataError(
            f"images in {path} have 1 or 3 channels, not {shape[0]}; use 1 or 3 in --input"
        )
    if not path.is_dir():
        raise DataError(f"no such folder: {path}")
    _tell_leftovers(path)
    inner = [path / "train", path / "val"]
    if all(folder.is_dir() for folder in inner):
        (train_paths, train_labels, classes), (val_paths, val_labels, val_classes) = map(
            _scan, inner
        )
        _same_classes(path, classes, val_classes)
        verify([*train_paths, *val_paths], path)
    else:
        if inner[0].is_dir() and any(item.is_dir() for item in inner[0].iterdir()):
            raise DataError(f"{path} has train/ but no val/; add {inner[1]} or give {inner[0]}")
        paths, labels, classes = _scan(path)
        first, second = split(labels, seed, classes)
        verify(paths, path)
        train_paths, train_labels = [paths[i] for i in first], [labels[i] for i in first]
        val_paths, val_labels = [paths[i] for i in second], [labels[i] for i in second]
    mode = "L" if shape[0] == 1 else "RGB"
    train = ImageFiles(train_paths, train_labels, classes, mode, augmented(shape))
    val = ImageFiles(val_paths, val_labels, classes, mode, centred(shape))
    return train, val, len(classes)


def open_unlabelled(path: Path, shape: tuple[int, ...]) -> ImageFiles:
    """All images under ``path``, whatever folders they are in; labels are all 0 and mean nothing.

    Raises DataError naming the folder or file at fault.
    """
    if shape[0] not in (1, 3):
        raise DataError(
            f"images in {path} have 1 or 3 channels, not {shape[0]}; use 1 or 3 in --input"
        )
    if not path.is_dir():
        raise DataError(f"no such folder: {path}")
    _tell_leftovers(path)
    files = sorted(file for file in _images(path) if not _left_behind(file, path))
    if len(files) < FEWEST:
        raise DataError(f"{path} has {len(files)} images, and at least {FEWEST} are needed")
    verify(files, path)
    mode = "L" if shape[0] == 1 else "RGB"
    sizes = (shape[0], shape[1], shape[2])
    return ImageFiles(files, [0] * len(files), ["unlabelled"], mode, centred(sizes))


def _scan(folder: Path) -> tuple[list[Path], list[int], list[str]]:
    """Image paths, labels and class names under ``folder``."""
    kinds = sorted(p for p in folder.iterdir() if p.is_dir() and not _is_leftover(p.name))
    if not kinds:
        raise DataError(
            f"no class folders in {folder}; put each class's images in a folder of its own"
        )
    if len(kinds) == 1:
        raise DataError(
            f"only one class folder in {folder}: {kinds[0].name}; at least two are needed"
        )
    _refuse_splits(folder, kinds)
    paths: list[Path] = []
    labels: list[int] = []
    for label, kind in enumerate(kinds):
        files = sorted(p for p in _images(kind) if not _left_behind(p, folder))
        if not files:
            raise DataError(f"no images in class folder {kind}; add some or remove the folder")
        paths += files
        labels += [label] * len(files)
    return paths, labels, [kind.name for kind in kinds]


def _images(folder: Path) -> Iterator[Path]:
    """All files under ``folder`` that are called as images are."""
    return (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name in _LEFTOVERS


def _left_behind(path: Path, folder: Path) -> bool:
    """Whether a file is hidden or a leftover, or lies in such a folder."""
    return any(_is_leftover(part) for part in path.relative_to(folder).parts)


def _tell_leftovers(folder: Path) -> None:
    """Say which images are left out."""
    out = sorted(path for path in _images(folder) if _left_behind(path, folder))
    if out:
        many = f"{len(out)} {'file' if len(out) == 1 else 'files'}"
        say(f"note: {many} left out in {folder}, hidden or left by an archive: {out[0]} first")


def _refuse_splits(folder: Path, kinds: list[Path]) -> None:
    """Folders that all hold the same folders, and no images, are parts of a data set."""
    inner = [
        {p.name for p in kind.iterdir() if p.is_dir() and not _is_leftover(p.name)}
        for kind in kinds
    ]
    images = any(p.suffix.lower() in IMAGE_SUFFIXES for kind in kinds for p in kind.iterdir())
    if len(inner[0]) > 1 and all(names == inner[0] for names in inner) and not images:
        parts = ", ".join(f"{kind.name}/" for kind in kinds)
        raise DataError(
            f"{folder} has {parts} which all hold the folders {', '.join(sorted(inner[0])[:5])}; "
            "parts of a data set are called train/ and val/: rename them"
        )


def _same_classes(path: Path, train: list[str], val: list[str]) -> None:
    for name in sorted({*train} ^ {*val}):
        having, lacking = ("train", "val") if name in train else ("val", "train")
        raise DataError(
            f"{path}: class {name} is in {having}/ but not in {lacking}/; "
            "both need the same class folders"
        )


def verify(paths: list[Path], folder: Path) -> None:
    """Look through images; DataError for the first that cannot be used, with their number."""
    broken = [
        (path, reason)
        for path in track(paths, f"looking through the images in {folder}", len(paths))
        if (reason := fault(path))
    ]
    if broken:
        path, reason = broken[0]
        count = f" ({len(broken)} such files)" if len(broken) > 1 else ""
        raise DataError(f"cannot read image {path}: {reason}{count}; remove or replace it")


def fault(path: Path) -> str:
    """Why the image cannot be used, or nothing."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            kind = image.format
            if image.mode in ("I", "F") and kind not in ("PNG", "PPM"):
                return f"its pixels are of mode {image.mode}; 8 or 16 bits are read"
            image.verify()
        # Pillow's check stops at a JPEG's header, and a cut-off download lacks the end marker:
        # only a file without it is worth the time of decoding.
        if kind == "JPEG" and not _ends_as_jpeg(path):
            with Image.open(path) as image:
                image.load()
    except UnidentifiedImageError:
        return "not an image file"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return first_line(error)
    return ""


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2))
        return file.read() == b"\xff\xd9"


def normalising(shape: Shape) -> list[Any]:
    """To floats with ImageNet's statistics."""
    import torch
    from torchvision.transforms import v2

    grey = shape[0] == 1
    mean = [sum(_MEAN) / 3] if grey else list(_MEAN)
    std = [sum(_STD) / 3] if grey else list(_STD)
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean, std),
        v2.ToPureTensor(),
    ]


def augmented(shape: Shape) -> Any:
    """Random crops, mirrored half of the time."""
    from torchvision.transforms import v2

    # A twelfth of a small image shows nothing that could be told apart.
    least = 0.08 if min(shape[1:]) > 64 else 0.5
    crop = v2.RandomResizedCrop(shape[1:], scale=(least, 1.0))
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *normalising(shape)])


def centred(shape: Shape) -> Any:
    """The middle of the picture."""
    from torchvision.transforms import v2

    short = round(max(shape[1:]) * 8 / 7)
    return v2.Compose([v2.Resize(short), v2.CenterCrop(shape[1:]), *normalising(shape)])
