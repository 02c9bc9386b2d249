"""Scores: finite, and not below zero."""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.core.scores import Scores
from prunekit.support.errors import UsageError


@pytest.mark.parametrize(
    ("values", "text"),
    [([1.0, np.nan], "are not finite"), ([1.0, np.inf], "are not finite"), ([1.0, -1], "negative")],
)
def test_scores_are_finite_and_not_negative(values, text):
    with pytest.raises(UsageError, match=f"taylor scores of group 'g' {text}|{text}"):
        Scores({"g": np.array(values)}, "taylor")
