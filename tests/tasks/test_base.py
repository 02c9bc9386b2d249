"""What tasks share: batches, inputs of several kinds, distances, outputs that do not fit."""

import pytest
import torch

from prunekit.support.errors import DataError, ModelError
from prunekit.tasks import Regression, Task
from prunekit.tasks.base import run


class Mean(Task):
    """The mean of all that comes out, which any outputs have."""

    name = "mean"
    metrics = Regression().metrics

    def criterion(self, outputs, targets):
        return (outputs["a"] - targets).mean()

    def scorer(self, *, brief=False, shared=False):
        raise NotImplementedError


def test_inputs_are_one_several_or_named():
    def forward(a, b=2):
        return a + b

    assert run(forward, 1) == 3
    assert run(forward, (1, 5)) == 6
    assert run(forward, {"b": 1, "a": 1}) == 2


def test_samples_of_several_inputs_are_stacked_each():
    samples = [({"a": torch.zeros(2), "b": torch.ones(3)}, 0.5)] * 4
    inputs, targets = Mean().collate(samples)
    assert {name: tuple(t.shape) for name, t in inputs.items()} == {"a": (4, 2), "b": (4, 3)}
    assert targets.tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            [(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 5), 0)],
            "inputs of one batch have different shapes: 1x4x4, 1x5x5; resize",
        ),
        (
            [(torch.zeros(1), torch.zeros(2)), (torch.zeros(1), torch.zeros(3))],
            "targets of one batch have different shapes: 2, 3",
        ),
    ],
)
def test_uneven_samples_are_named(samples, message):
    with pytest.raises(DataError, match=message):
        Mean().collate(samples)


def test_the_distance_is_the_mean_square_over_all_outputs():
    mine = {"a": torch.zeros(2), "b": [torch.zeros(3)]}
    taught = {"a": torch.ones(2), "b": [torch.full((3,), 2.0)]}
    assert float(Mean().distance(mine, taught, 4.0)) == 2.5
    with pytest.raises(ModelError, match="the teacher's output is 3 and the model's 2"):
        Mean().distance({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, 1.0)
    with pytest.raises(ModelError, match="hold no tensors"):
        Mean().distance(3, 4, 1.0)


def test_outputs_that_the_loss_cannot_take_are_named():
    with pytest.raises(ModelError, match="outputs do not fit the task mean: KeyError: 'a'"):
        Mean().check_outputs({}, torch.zeros(1))
