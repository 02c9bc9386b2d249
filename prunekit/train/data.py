"""From what a user writes after --data to a training and a validation set that fit the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunekit.support.errors import DataError
from prunekit.support.user_code import call_factory
from prunekit.tasks import Classification, Task
from prunekit.tasks.choosing import TaskChoice, choose_task
from prunekit.tasks.targets import Sets, target_of
from prunekit.train.batches import loader
from prunekit.train.folder import open_folder
from prunekit.train.formats.coco import open_coco
from prunekit.train.formats.columns import open_columns
from prunekit.train.formats.masks import open_masks
from prunekit.train.formats.voc import open_voc
from prunekit.train.formats.yolo import open_yolo
from prunekit.train.images import Shape
from prunekit.train.sets import SETS, open_digits, open_set

__all__ = ["Data", "load_data"]

_OBJECTS = {"coco": open_coco, "voc": open_voc, "yolo": open_yolo}
"""Detection; of yolo the path is a file."""
_PATHS = ("imagefolder", *sorted(SETS), "coco", "voc", "segmentation", "multilabel", "regression")
_KNOWN = "digits, {}, yolo:data.yaml, package.module:factory, path/file.py:factory".format(
    ", ".join(f"{name}:PATH" for name in _PATHS)
)
_ON_DISK = {*_PATHS, "yolo"}


@dataclass(frozen=True)
class Data:
    """Two sets of (input, target) pairs; ``input_shape`` is that of the first input without batch.

    ``num_classes`` is how many outputs the network's head needs, 0 where the task leaves it as it
    is. The task is
    classification unless ``given_task`` says another.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    num_classes: int
    input_shape: tuple[int, ...]
    name: str
    given_task: Task | None = None

    @cached_property
    def task(self) -> Task:
        """What is trained for."""
        return self.given_task or Classification(self.num_classes)

    def train_batches(
        self, batch_size: int, seed: int, *, epoch: int = 0, workers: int = 0
    ) -> DataLoader[Any]:
        """Shuffled batches of the training set, as the training has them."""
        collate = self.task.collate
        return loader(self.train, batch_size, seed, epoch=epoch, workers=workers, collate=collate)


def load_data(
    spec: str,
    input_shape: tuple[int, ...],
    seed: int = 0,
    task: TaskChoice | None = None,
    *,
    floating: bool = True,
) -> Data:
    """The data that ``spec`` names, with inputs of ``input_shape`` (channels, height, width).

    ``digits``; ``imagefolder:PATH``; ``cifar10:PATH`` and other sets on disk;
    ``package.module:factory`` or ``path/file.py:factory``, a function that returns a :class:`Data`
    or a (train, val) pair and may take ``input_shape`` and ``seed``; its inputs may have any
    shape, be whole numbers (``floating`` False), or be several in a tuple or a dictionary.
    ``seed`` decides the split where the source has none. ``task`` says what is trained for where
    the targets alone do not. Raises DataError for a source that is missing, empty, broken or of
    another shape, UsageError for a task that cannot be had.
    """
    choice = TaskChoice() if task is None else task
    kind, colon, rest = spec.partition(":")
    if is_code(spec) and colon and rest and kind:
        return _custom(spec, _checked_sizes(input_shape), seed, choice, floating=floating)
    shape = _checked_shape(input_shape)
    train: Dataset[Any]
    val: Dataset[Any]
    classes: int | None
    if spec == "digits":
        train, val, classes = open_digits(shape, seed)
    elif kind in _ON_DISK:
        if not rest:
            raise DataError(f"data {spec!r} lacks its folder; write {kind}:PATH")
        train, val, classes = _on_disk(kind, Path(rest).expanduser(), shape, seed)
        if kind in ("regression", "multilabel", "segmentation") and choice.spec is None:
            choice = replace(choice, spec=kind)
    else:
        hint = f"; for a folder of images write imagefolder:{spec}" if Path(spec).is_dir() else ""
        raise DataError(f"unknown data {spec!r}{hint}; known: {_KNOWN}")
    sets = Sets(train, val, spec, classes)
    data = _with_task(sets, shape, choice)
    for dataset, part in sets.parts:
        _check_sample(dataset, part, data)
    return data


def _on_disk(
    kind: str, path: Path, shape: Shape, seed: int
) -> tuple[Dataset[Any], Dataset[Any], int | None]:
    """Training set, validation set and number of classes, where the source knows it."""
    if kind != "yolo" and not path.is_dir():
        raise DataError(f"no such folder: {path}")
    if kind in _OBJECTS:
        return _OBJECTS[kind](path, shape)
    if kind == "segmentation":
        return open_masks(path, shape, seed)
    if kind in ("multilabel", "regression"):
        return *open_columns(path, shape, seed, binary=kind == "multilabel"), None
    if kind == "imagefolder":
        return open_folder(path, shape, seed)
    return open_set(kind, path, shape)


def _with_task(sets: Sets, shape: tuple[int, ...], choice: TaskChoice) -> Data:
    task = choose_task(sets, choice)
    return Data(sets.train, sets.val, task.num_outputs or 0, shape, sets.name, task)


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


def _checked_sizes(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not sizes or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise DataError(f"`input_shape` must be sizes such as (3, 32, 32), not {shape!r}")
    return sizes


def _custom(
    spec: str, shape: tuple[int, ...], seed: int, choice: TaskChoice, *, floating: bool
) -> Data:
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
        if isinstance(data.task, Classification) and data.num_classes < 2:
            raise DataError(f"{spec} has only one class; at least two are needed")
        if choice != TaskChoice():
            data = _with_task(Sets(data.train, data.val, spec, data.num_classes), shape, choice)
    elif isinstance(made, (tuple, list)) and len(made) == 2:
        train, val = made
        sets = Sets(train, val, spec)
        for dataset, part in sets.parts:
            _check_size(dataset, part)
            _check_input(_pair(dataset[0], part)[0], part, shape, floating=floating)
        data = _with_task(sets, shape, choice)
    else:
        raise DataError(
            f"{spec} returned {type(made).__name__}; "
            "it must return prunekit.train.Data or a (train, val) pair"
        )
    for dataset, part in Sets(data.train, data.val, spec).parts:
        _check_sample(dataset, part, data, floating=floating)
    return data


def _check_size(dataset: Any, name: str) -> None:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{name} is a {type(dataset).__name__}; "
            "a data set with a length and samples by index is needed"
        )
    if len(dataset) == 0:
        raise DataError(f"{name} is empty")


def _pair(sample: Any, name: str) -> tuple[Any, Any]:
    target = target_of(sample, name)
    return sample[0], target


def _check_sample(dataset: Any, name: str, data: Data, *, floating: bool = True) -> None:
    """One sample stands for all: a pair of an input of the right shape and a possible target."""
    _check_size(dataset, name)
    value, target = _pair(dataset[0], name)
    _check_input(value, name, tuple(data.input_shape), floating=floating)
    data.task.check_target(target, name)


def _check_input(value: Any, name: str, shape: tuple[int, ...], *, floating: bool) -> None:
    if isinstance(value, (tuple, list, dict)):
        tensors = list(value.values() if isinstance(value, dict) else value)
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            container = type(value).__name__
            raise DataError(
                f"{name} gives images as {container}; float tensors are needed, add a transform"
            )
        first = tensors[0]
    elif not isinstance(value, Tensor) or (floating and not value.is_floating_point()):
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"{name} gives images as {kind}; float tensors are needed, add a transform")
    else:
        first = value
    if tuple(first.shape) != shape:
        raise DataError(
            f"{name} has images of {_times(first.shape)}, the model's input is "
            f"{_times(shape)}; use --input with {_times(first.shape)} "
            "or resize in the factory"
        )


def _times(shape: Any) -> str:
    return "x".join(str(n) for n in shape)
