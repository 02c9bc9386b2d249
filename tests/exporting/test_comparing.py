"""Outputs that are rankings are compared as rankings, and all others as they stand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.exporting.comparing import _ranks, ranked_apart


def ranking(scores, boxes):
    return [np.array(scores, np.float32), np.array(boxes, np.float32)]


BOXES = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_near_equal_scores_may_change_places():
    left = ranking([0.9, 0.50001, 0.5], BOXES)
    right = ranking([0.9, 0.50001, 0.5], [BOXES[0], BOXES[2], BOXES[1]])
    assert ranked_apart(left, right, 1e-4) < 1e-4
    assert ranked_apart(left, right, 1e-6) == np.inf
    batched = [[o[None] for o in side] for side in (left, right)]
    assert ranked_apart(*batched, 1e-4) < 1e-4


def test_at_the_end_of_the_list_another_may_have_come_in():
    left = ranking([0.9, 0.7, 0.5], BOXES)
    assert ranked_apart(left, ranking([0.9, 0.7, 0.5], [*BOXES[:2], [7.0, 7.0]]), 1e-4) <= 1e-4
    middle = ranking([0.9, 0.7, 0.5], [BOXES[0], [7.0, 7.0], BOXES[2]])
    assert ranked_apart(left, middle, 1e-4) == np.inf


def test_what_is_no_ranking_is_none():
    outputs = [np.array([[0.1, 0.7, 0.3]], np.float32)]
    assert ranked_apart(outputs, [outputs[0][:, ::-1]], 1e-4) == np.inf


@pytest.mark.parametrize(
    ("model", "ranks"), [(nn.Linear(3, 2), False), (lambda x: x.topk(2)[0], True)]
)
def test_a_model_that_takes_the_best_few_is_noticed(model, ranks):
    assert _ranks(model, {"x": torch.randn(2, 3).numpy()}, is_dict=False) is ranks
