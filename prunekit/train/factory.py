"""Classes and labels of a data set that the user wrote."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, Subset, TensorDataset

from prunekit.support.progress import track

__all__ = ["classes_of", "labels_of"]


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
    count = len(dataset)  # type: ignore[arg-type]
    indices = track(range(count), f"reading the labels of {name}", count)
    return [int(dataset[index][1]) for index in indices]


def _known_labels(dataset: Dataset[Any]) -> list[int] | None:
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return [int(label) for label in dataset.tensors[1]]
    for attribute in ("targets", "labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return [int(label) for label in values]
    return None
