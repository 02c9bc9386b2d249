"""Where a layer's time ends."""

from __future__ import annotations

import pytest

from prunekit.runtimes.torch.module import spans


def test_a_layer_lasts_until_the_next_begins():
    stamps = [("a", 1.0), ("b", 3.0), ("a", 4.0)]
    assert spans(stamps, 0.5, 6.0) == {"a": pytest.approx(4.5e6), "b": pytest.approx(1e6)}
