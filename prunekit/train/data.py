"""From what a user writes after --data to a training and a validation set that fit the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunekit.support.errors import DataError
from prunekit.support.user_code import call_factory
from prunekit.train.factory import classes_of, labels_of
from prunekit.train.folder import open_folder
from prunekit.train.sets import SETS, open_digits, open_set

__all__ = ["Data", "load_data"]

_KNOWN = "digits, imagefolder:PATH, {}, package.module:factory, path/file.py:factory".format(
    ", ".join(f"{name}:PATH" for name in sorted(SETS))
)
_ON_DISK = {"imagefolder", *SETS}


@dataclass(frozen=True)
class Data:
    """Two sets of (image, label) pairs; ``input_shape`` is (channels, height, width)."""

    train: Dataset[Any]
    val: Dataset[Any]
    num_classes: int
    input_shape: tuple[int, int, int]
    name: str


def load_data(spec: str, input_shape: tuple[int, int, int], seed: int = 0) -> Data:
    """The data that ``spec`` names, as images of ``input_shape`` (channels, height, width).

    ``digits``; ``imagefolder:PATH``; ``cifar10:PATH`` and other sets on disk;
    ``package.module:factory`` or ``path/file.py:factory``, a function that returns a :class:`Data`
    or a (train, val) pair and may take ``input_shape`` and ``seed``. ``seed`` decides the split
    where the source has none. Raises DataError for a source that is missing, empty, broken or of
    another shape.
    """
    shape = _checked_shape(input_shape)
    kind, colon, rest = spec.partition(":")
    train: Dataset[Any]
    val: Dataset[Any]
    if spec == "digits":
        train, val, classes = open_digits(shape, seed)
    elif kind in _ON_DISK:
        if not rest:
            raise DataError(f"data {spec!r} lacks its folder; write {kind}:PATH")
        path = Path(rest).expanduser()
        if kind == "imagefolder":
            train, val, classes = open_folder(path, shape, seed)
        else:
            train, val, classes = open_set(kind, path, shape)
    elif not colon or not rest or not kind:
        hint = f"; for a folder of images write imagefolder:{spec}" if Path(spec).is_dir() else ""
        raise DataError(f"unknown data {spec!r}{hint}; known: {_KNOWN}")
    else:
        return _custom(spec, shape, seed)
    data = Data(train, val, classes, shape, spec)
    for dataset, part in ((train, "train"), (val, "val")):
        _check_sample(dataset, f"{spec} ({part})", data)
    return data


def is_code(spec: str) -> bool:
    """Whether ``spec`` names a function of the user's, which runs when the data is opened."""
    return spec != "digits" and spec.partition(":")[0] not in _ON_DISK


def _checked_shape(shape: Any) -> tuple[int, int, int]:
    sizes = tuple(shape)
    if len(sizes) != 3 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise DataError(
            f"`input_shape` must be (channels, height, width), not {'x'.join(map(str, sizes))}"
        )
    return sizes[0], sizes[1], sizes[2]


def _custom(spec: str, shape: tuple[int, int, int], seed: int) -> Data:
    offered = {"input_shape": shape, "seed": seed}
    made, _ = call_factory(spec, offered, DataError, f"known data: {_KNOWN}")
    if isinstance(made, Data):
        data = made
        if tuple(data.input_shape) != shape:
            raise DataError(
                f"{spec} has images of {_times(data.input_shape)}, the model's input is "
                f"{_times(shape)}; use --input with {_times(data.input_shape)} "
                "or resize in the factory"
            )
        if data.num_classes < 2:
            raise DataError(f"{spec} has only one class; at least two are needed")
    elif isinstance(made, (tuple, list)) and len(made) == 2:
        train, val = made
        for dataset, part in ((train, "train"), (val, "val")):
            _check_size(dataset, f"{spec} ({part})")
        data = Data(train, val, _num_classes(spec, train, val), shape, spec)
    else:
        raise DataError(
            f"{spec} returned {type(made).__name__}; "
            "it must return prunekit.train.Data or a (train, val) pair"
        )
    for dataset, part in ((data.train, "train"), (data.val, "val")):
        _check_sample(dataset, f"{spec} ({part})", data)
    return data


def _check_size(dataset: Any, name: str) -> None:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{name} is a {type(dataset).__name__}; "
            "a data set with a length and samples by index is needed"
        )
    if len(dataset) == 0:
        raise DataError(f"{name} is empty")


def _num_classes(spec: str, train: Dataset[Any], val: Dataset[Any]) -> int:
    names, val_names = classes_of(train), classes_of(val)
    if names is not None and val_names is not None and names != val_names:
        differing = sorted({*names} ^ {*val_names})
        what = f"differ in {', '.join(differing[:5])}" if differing else "come in another order"
        raise DataError(
            f"{spec}: the classes of train and val {what}; give both the same `classes`"
        )
    if names is not None:
        count = len(names)
    else:
        labels = {*labels_of(train, f"{spec} (train)")}
        extra = sorted({*labels_of(val, f"{spec} (val)")} - labels)
        if extra:
            shown = ", ".join(map(str, extra[:5]))
            raise DataError(f"{spec}: val has labels that train lacks: {shown}; split by class")
        if min(labels) < 0:
            raise DataError(f"{spec} has the label {min(labels)}; labels count from 0")
        count = max(labels) + 1
    if count < 2:
        raise DataError(f"{spec} has only one class; at least two are needed")
    return count


def _check_sample(dataset: Any, name: str, data: Data) -> None:
    """One sample stands for all: an (image, label) pair of the right shape and range."""
    _check_size(dataset, name)
    sample = dataset[0]
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise DataError(
            f"{name} gives {type(sample).__name__} samples; (image, label) pairs are needed"
        )
    image, label = sample
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"{name} gives images as {kind}; float tensors are needed, add a transform")
    if tuple(image.shape) != tuple(data.input_shape):
        raise DataError(
            f"{name} has images of {_times(image.shape)}, the model's input is "
            f"{_times(data.input_shape)}; use --input with {_times(image.shape)} "
            "or resize in the factory"
        )
    try:
        number = int(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} gives the label {label!r}; whole numbers from 0 are needed"
        ) from error
    floating = isinstance(label, float) or (torch.is_tensor(label) and label.is_floating_point())
    if floating or not 0 <= number < data.num_classes:
        raise DataError(
            f"{name} gives the label {label}; "
            f"whole numbers from 0 to {data.num_classes - 1} are needed"
        )


def _times(shape: Any) -> str:
    return "x".join(str(n) for n in shape)
