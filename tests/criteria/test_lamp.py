"""LAMP: what equal filters share."""

from __future__ import annotations

import pytest

import prunekit as pk
from support.scoring import channels_of, linear, scored


def test_equal_filters_share_what_lamp_gives_the_largest():
    layer = linear([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    assert scored(pk.LAMP(), channels_of("a"), {"a": layer}) == pytest.approx([1 / 9, 1 / 2, 1 / 2])
