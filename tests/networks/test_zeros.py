"""Patterns of zeros lie along the inputs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.core.density import Pattern
from prunekit.networks import zeros


@given(st.integers(0, 1000), st.sampled_from([(2, 4), (1, 4), (3, 8)]))
def test_blocks_lie_along_the_inputs(seed, nm):
    pattern = Pattern(*nm)
    scores = torch.rand(3, 16, 2, 3, generator=torch.Generator().manual_seed(seed))
    chosen = zeros.top_of_blocks(scores, pattern)
    for out, i, j in [(o, i, j) for o in range(3) for i in range(2) for j in range(3)]:
        for start in range(0, 16, pattern.m):
            block = chosen[out, start : start + pattern.m, i, j]
            values = scores[out, start : start + pattern.m, i, j]
            assert block.sum() == pattern.n
            assert values[block].min() >= values[~block].max()
    assert zeros.fits(chosen, pattern)
    one_more = chosen.clone()
    one_more[0, :, 0, 0] = True
    assert not zeros.fits(one_more, pattern)
