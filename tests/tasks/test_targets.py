"""Which task targets are of, how many classes there are, and how often each."""

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from prunekit.support.errors import DataError
from prunekit.tasks.targets import Sets, balanced, kind_of, labels_of


def sets(targets):
    data = TensorDataset(torch.zeros(len(targets), 1), torch.as_tensor(targets))
    return Sets(data, data, "mine")


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([0, 1, 2], "classification"),
        ([[0], [1]], "classification"),
        ([0.5, 1.0], "regression"),
        ([[0.5, 1.0], [2.0, 3.0]], "regression"),
        ([[0.0, 1.0], [1.0, 1.0]], "multilabel"),
        ([[0, 1, 1], [1, 0, 0]], "multilabel"),
        ([[1.0, 0.0], [1.0, 0.5]], "regression"),
        ([[[0, 1], [1, 1]]] * 2, "segmentation"),
    ],
)
def test_the_kind_of_targets(targets, kind):
    assert kind_of(sets(targets)) == kind


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[3, 4], [1, 2]], "targets of int64 and shape 2, which are of no known task; name one"),
        ([[[0.5, 1.0]]] * 2, "targets of float32 and shape 1x2"),
    ],
)
def test_targets_of_no_known_task(targets, message):
    with pytest.raises(DataError, match=message):
        kind_of(sets(targets))


def test_balanced_weights_let_every_class_weigh_the_same():
    weights = balanced(sets([0, 0, 0, 1]), 2)
    assert weights == pytest.approx([4 / 6, 4 / 2])
    with pytest.raises(DataError, match="has no sample of class 2, which cannot be balanced"):
        balanced(sets([0, 0, 0, 1]), 3)


def test_labels_of_a_subset_of_a_tensor_dataset():
    whole = TensorDataset(torch.zeros(3, 1), torch.tensor([4, 5, 6]))
    assert labels_of(Subset(whole, [2, 0]), "x") == [6, 4]
