"""From what a user says of a task, and what the data is, to the task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from prunekit.support.errors import UsageError
from prunekit.support.registry import tasks
from prunekit.support.user_code import call_factory
from prunekit.tasks.base import Task
from prunekit.tasks.classification import Classification
from prunekit.tasks.detection import Detection
from prunekit.tasks.multilabel import MultiLabel
from prunekit.tasks.regression import Regression
from prunekit.tasks.segmentation import VOID, Segmentation
from prunekit.tasks.targets import (
    Sets,
    balanced,
    count_classes,
    count_objects,
    kind_of,
    target_of,
    targets_in,
)

__all__ = ["MakeTask", "TaskChoice", "choose_task"]

BALANCED = "balanced"


@dataclass(frozen=True)
class TaskChoice:
    """What is said of a task: None is what the data says, or the task's own default.

    ``spec`` is a name, or ``path/file.py:factory`` or ``package.module:factory`` of one's own;
    ``class_weights`` are numbers divided by commas, or "balanced".
    """

    spec: str | None = None
    loss: str | None = None
    metric: str | None = None
    class_weights: str | None = None

    @property
    def is_code(self) -> bool:
        """Whether it names a function of the user's."""
        return self.spec is not None and ":" in self.spec

    def refuse(self, task: str, *names: str) -> None:
        """Raise UsageError where one of the settings called ``names`` is given."""
        for name in names:
            if getattr(self, name) is not None:
                raise UsageError(f"`{name}` is nothing that the task {task} knows; leave it out")

    def weights(self, sets: Sets, count: int) -> list[float] | None:
        """Class weights as numbers; None where none are given."""
        if self.class_weights is None:
            return None
        if self.class_weights == BALANCED:
            return balanced(sets, count)
        try:
            return [float(part) for part in self.class_weights.split(",")]
        except ValueError as error:
            raise UsageError(
                f"cannot read `class_weights` {self.class_weights!r}; write numbers such as "
                f"1,2.5,1 or {BALANCED}"
            ) from error


MakeTask: TypeAlias = Callable[[Sets, TaskChoice], Task]
"""What the entry points ``prunekit.tasks`` name: a task for two sets."""


def choose_task(sets: Sets, choice: TaskChoice) -> Task:
    """The task of ``sets``: what ``choice`` names, else what the targets are plainly of.

    Raises UsageError or DataError.
    """
    if choice.is_code:
        return _own(sets, choice)
    name = choice.spec or kind_of(sets)
    make: MakeTask = tasks.get(name)
    return _checked(make(sets, choice), name)


def _own(sets: Sets, choice: TaskChoice) -> Task:
    offered = {
        "num_classes": sets.num_classes,
        "classes": sets.classes,
        "loss": choice.loss,
        "metric": choice.metric,
    }
    made, taken = call_factory(str(choice.spec), offered, UsageError)
    unused = tuple(name for name in ("loss", "metric") if name not in taken)
    choice.refuse(str(choice.spec), *unused, "class_weights")
    return _checked(made, str(choice.spec))


def _checked(made: Any, name: str) -> Task:
    if not isinstance(made, Task):
        raise UsageError(
            f"the task {name} is a {type(made).__name__}; it must be a prunekit.tasks.Task"
        )
    if not made.metrics:
        raise UsageError(f"the task {name} has no metrics; give it one at least")
    return made


def classification(sets: Sets, choice: TaskChoice) -> Task:
    """One class for each input."""
    choice.refuse("classification", "loss")
    count = sets.num_classes or count_classes(sets)
    weights = choice.weights(sets, count)
    return Classification(count, metric=choice.metric, class_weights=weights)


def multilabel(sets: Sets, choice: TaskChoice) -> Task:
    """Zeros and ones for each input."""
    choice.refuse("multilabel", "loss")
    names = sets.classes
    count = len(names) if names is not None else torch.as_tensor(sets.first_target()).numel()
    weights = choice.weights(sets, count)
    return MultiLabel(count, metric=choice.metric, class_weights=weights)


def regression(sets: Sets, choice: TaskChoice) -> Task:
    """As many numbers as the first target has."""
    choice.refuse("regression", "class_weights")
    count = torch.as_tensor(sets.first_target()).numel()
    return Regression(count, loss=choice.loss, metric=choice.metric)


def segmentation(sets: Sets, choice: TaskChoice) -> Task:
    """A class for every pixel."""
    choice.refuse("segmentation", "loss")
    names = sets.classes
    count = sets.num_classes or (len(names) if names is not None else _count_in_masks(sets))
    weights = None if choice.class_weights == BALANCED else choice.weights(sets, count)
    if choice.class_weights == BALANCED:
        raise UsageError(f"`class_weights` of segmentation are numbers, not {BALANCED}")
    return Segmentation(count, metric=choice.metric, class_weights=weights)


def detection(sets: Sets, choice: TaskChoice) -> Task:
    """Boxes and classes of objects."""
    choice.refuse("detection", "loss", "class_weights")
    names = sets.classes
    count = sets.num_classes or (len(names) if names is not None else count_objects(sets))
    return Detection(count, metric=choice.metric, class_names=names or ())


def _count_in_masks(sets: Sets) -> int:
    """One more than the largest class in any mask, two at least."""
    train, name = sets.parts[0]
    largest = 0
    for target in targets_in(train, name):
        mask = torch.as_tensor(target)
        counted = mask[mask != VOID]
        largest = max(largest, int(counted.max()) if counted.numel() else 0)
    return max(2, largest + 1)


def check_sets(sets: Sets, task: Task) -> None:
    """Raise DataError where the first target of either set cannot be one of the task."""
    for dataset, name in sets.parts:
        task.check_target(target_of(dataset[0], name), name)
