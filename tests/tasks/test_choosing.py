"""From flags and data to a task, and what cannot be one."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from prunekit.support.errors import DataError, UsageError
from prunekit.tasks.choosing import TaskChoice, choose_task
from prunekit.tasks.targets import Sets

OWN = """
from prunekit.tasks import Metric, Task
class Mine(Task):
    name = "mine"
    metrics = (Metric("mae", "error", "", False),)
    def criterion(self, outputs, targets): return (outputs - targets).abs().mean()
    def scorer(self, *, brief=False, shared=False): ...
def task(num_classes, metric): return Mine()
def empty():
    made = Mine()
    made.metrics = ()
    return made
def number(): return 3
def broken(): return 1 / 0
"""


def sets(targets, name="mine", count=None):
    data = TensorDataset(torch.zeros(len(targets), 1), torch.as_tensor(targets))
    return Sets(data, data, name, count)


MASKS = torch.tensor([[[0, 1], [4, 255]]] * 2)


@pytest.mark.parametrize(
    ("targets", "choice", "name", "outputs"),
    [
        ([0, 1, 2], TaskChoice(), "classification", 3),
        ([0, 1, 2], TaskChoice("regression", loss="huber", metric="r2"), "regression", 1),
        ([[0.0, 1.0]], TaskChoice(class_weights="1,2"), "multilabel", 2),
        ([[0.0, 1.0]], TaskChoice("regression"), "regression", 2),
        (MASKS, TaskChoice(), "segmentation", 5),
        ([0, 0, 1], TaskChoice(class_weights="balanced"), "classification", 2),
    ],
)
def test_tasks(targets, choice, name, outputs):
    task = choose_task(sets(targets), choice)
    assert (task.name, task.num_outputs) == (name, outputs)
    if choice.metric:
        assert task.primary.key == choice.metric


def test_a_source_that_knows_its_classes_is_believed():
    assert choose_task(sets([0, 1], count=7), TaskChoice()).num_outputs == 7


@pytest.mark.parametrize(
    ("targets", "choice", "message"),
    [
        ([0, 1], TaskChoice("pose"), "unknown tasks name 'pose'; known: classification"),
        ([0, 1], TaskChoice(loss="huber"), "`loss` is nothing that the task classification knows"),
        ([0.5], TaskChoice(class_weights="1"), "`class_weights` is nothing that the task regress"),
        ([0, 1], TaskChoice(class_weights="1;2"), "cannot read `class_weights` '1;2'; write numb"),
        ([0, 1], TaskChoice(metric="map"), "`metric` 'map' is none of classification"),
        (MASKS, TaskChoice(class_weights="balanced"), "of segmentation are numbers, not balanced"),
    ],
)
def test_what_a_task_does_not_know(targets, choice, message):
    with pytest.raises(UsageError, match=message):
        choose_task(sets(targets), choice)


def test_classes_that_are_too_few():
    with pytest.raises(DataError, match="mine has only one class"):
        choose_task(sets([0, 0]), TaskChoice())


@pytest.mark.parametrize(
    ("function", "choice", "message"),
    [
        ("number", {}, "is a int; it must be a prunekit.tasks.Task"),
        ("broken", {}, "failed: ZeroDivisionError: division by zero"),
        ("empty", {}, "has no metrics"),
        ("gone", {}, "has no callable 'gone'"),
        ("task", {"loss": "x"}, "`loss` is nothing that the task"),
    ],
)
def test_own_tasks_that_fail_are_named(tmp_path: Path, function, choice, message):
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path / 'own.py'}:{function}"
    with pytest.raises(UsageError, match=message) as caught:
        choose_task(sets([0, 1]), TaskChoice(spec, **choice))
    assert "\n" not in str(caught.value)


def test_an_own_task(tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    task = choose_task(sets([0, 1]), TaskChoice(f"{tmp_path / 'own.py'}:task", metric="mae"))
    assert task.name == "mine"
    assert task.num_outputs is None
