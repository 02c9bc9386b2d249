"""What the targets of a data set say: its classes, and which task they are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from prunekit.support.errors import DataError
from prunekit.support.progress import track
from prunekit.tasks.base import shape_text

__all__ = ["Sets", "classes_of", "kind_of", "labels_of"]

_LOOKED_AT = 16
"""Targets that a task is told by."""


@dataclass(frozen=True)
class Sets:
    """Two sets of (input, target) pairs, their name, and their number of classes if known."""

    train: Dataset[Any]
    val: Dataset[Any]
    name: str
    num_classes: int | None = None

    @property
    def parts(self) -> tuple[tuple[Dataset[Any], str], tuple[Dataset[Any], str]]:
        """Both, each with its name."""
        return (self.train, f"{self.name} (train)"), (self.val, f"{self.name} (val)")

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, if there are any; DataError where the two sets differ."""
        names, others = classes_of(self.train), classes_of(self.val)
        if names is not None and others is not None and names != others:
            differing = sorted({*names} ^ {*others})
            change = (
                f"differ in {', '.join(differing[:5])}" if differing else "come in another order"
            )
            raise DataError(
                f"{self.name}: the classes of train and val {change}; give both the same `classes`"
            )
        return names

    def first_target(self) -> Any:
        """That of the first training sample."""
        return target_of(self.train[0], self.parts[0][1])


def classes_of(dataset: Dataset[Any]) -> list[str] | None:
    """The names in the data set's ``classes``, if it has any."""
    if isinstance(dataset, Subset):
        return classes_of(dataset.dataset)
    classes = getattr(dataset, "classes", None)
    return None if classes is None else [str(name) for name in classes]


def labels_of(dataset: Dataset[Any], name: str) -> list[int]:
    """Every label: from ``targets`` or ``labels`` if there are any, else from all samples."""
    known = _known_labels(dataset)
    if known is not None:
        return known
    return [_label(target, name) for target in targets_in(dataset, name)]


def targets_in(dataset: Dataset[Any], name: str) -> Iterator[Any]:
    """Every target, read with its input, which takes time."""
    count = len(dataset)  # type: ignore[arg-type]
    for index in track(range(count), f"reading the labels of {name}", count):
        yield target_of(dataset[index], name)


def target_of(sample: Any, name: str) -> Any:
    """The second of a pair; DataError for anything else."""
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise DataError(
            f"{name} gives {type(sample).__name__} samples; (image, label) pairs are needed"
        )
    return sample[1]


def count_classes(sets: Sets) -> int:
    """How many classes the labels are of; DataError below two, or for strays in val."""
    names = sets.classes
    if names is not None:
        count = len(names)
    else:
        (train, train_name), (val, val_name) = sets.parts
        labels = {*labels_of(train, train_name)}
        extra = sorted({*labels_of(val, val_name)} - labels)
        if extra:
            shown = ", ".join(map(str, extra[:5]))
            raise DataError(
                f"{sets.name}: val has labels that train lacks: {shown}; split by class"
            )
        if min(labels) < 0:
            raise DataError(f"{sets.name} has the label {min(labels)}; labels count from 0")
        count = max(labels) + 1
    if count < 2:
        raise DataError(f"{sets.name} has only one class; at least two are needed")
    return count


def count_objects(sets: Sets) -> int:
    """One more than the largest label of any object; DataError where no object is to be seen."""
    train, name = sets.parts[0]
    largest = -1
    for target in targets_in(train, name):
        labels = torch.as_tensor(target["labels"])
        largest = max(largest, int(labels.max()) if labels.numel() else -1)
    if largest < 0:
        raise DataError(f"{name} has no objects; add some, or give it `classes`")
    return largest + 1


def balanced(sets: Sets, count: int) -> list[float]:
    """Class weights that let every class of whole numbers as labels weigh the same."""
    labels = labels_of(*sets.parts[0])
    numbers = torch.bincount(torch.tensor(labels), minlength=count).tolist()
    if not all(numbers):
        raise DataError(
            f"{sets.parts[0][1]} has no sample of class {numbers.index(0)}, which cannot be "
            "balanced; give `class_weights` as numbers"
        )
    return [len(labels) / (count * number) for number in numbers]


def kind_of(sets: Sets) -> str:
    """The name of the task that the targets are plainly of; DataError where that is not clear.

    Whole numbers: classification. Vectors of zeros and ones: multilabel. Real numbers, one or
    several: regression. Masks of whole numbers: segmentation. Boxes: detection.
    """
    train, name = sets.parts[0]
    first = sets.first_target()
    if isinstance(first, Mapping) and "boxes" in first:
        return "detection"
    try:
        value = torch.as_tensor(first)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} gives the label {first!r}; whole numbers from 0 are needed, or --task"
        ) from error
    if value.numel() == 1 and value.ndim < 2:
        return "regression" if value.is_floating_point() else "classification"
    if value.ndim == 2 and not value.is_floating_point():
        return "segmentation"
    if value.ndim == 1:
        count = min(_LOOKED_AT, len(train))  # type: ignore[arg-type]
        looked_at = torch.stack([torch.as_tensor(train[i][1]) for i in range(count)])
        if bool(((looked_at == 0) | (looked_at == 1)).all()):
            return "multilabel"
        if value.is_floating_point():
            return "regression"
    raise DataError(
        f"{name} gives targets of {str(value.dtype).removeprefix('torch.')} and shape "
        f"{shape_text(value)}, which are of no known task; name one with --task, such as "
        "segmentation or your own (path/file.py:factory)"
    )


def _known_labels(dataset: Dataset[Any]) -> list[int] | None:
    name = type(dataset).__name__
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return _labels(dataset.tensors[1], name)
    for attribute in ("targets", "labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return _labels(values, name)
    return None


def _labels(values: Sequence[Any] | Tensor, name: str) -> list[int]:
    return [_label(value, name) for value in values]


def _label(target: Any, name: str) -> int:
    try:
        return int(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} gives the label {target!r}; whole numbers from 0 are needed"
        ) from error
