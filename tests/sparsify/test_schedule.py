"""Schedules: the cubic one, lengths, settings that cannot work."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.sparsify import SparsitySchedule, verify
from prunekit.support.errors import UsageError
from support.sparse_loop import Loop


@given(
    method=st.sampled_from(["set", "rigl", "iee", "gmp"]),
    sparsity=st.floats(0.3, 0.97),
    fraction=st.floats(0.01, 0.99),
    every=st.integers(1, 5),
    decay=st.sampled_from(["cosine", "exponential", "constant"]),
    ranking=st.sampled_from(["layer", "global"]),
    reactivate=st.floats(0.01, 1.0),
    sample=st.sampled_from(["random", "gradient"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_totals_hold_whatever_the_settings(method, sparsity, ranking, **options):
    loop = Loop(method, sparsity, ranking=ranking, steps=20, **options).run()
    assert sum(layer.kept for layer in loop.sparse.plan.sparse) == sum(loop.sparse.target)
    verify(loop.model, loop.sparse.plan)


def test_gmp_begins_dense_and_follows_the_cubic_schedule():
    loop = Loop("gmp", steps=40, every=4)
    assert all(mask.all() for mask in loop.sparse.masks.values())
    updates, cycle = 9, 0
    sizes = [loop.weight(n).numel() for n in loop.sparse.masks]
    while loop.done < 40:
        loop.step()
        if len(loop.sparse.history) > cycle:
            cycle += 1
            left = (1 - cycle / updates) ** 3
            wanted = [
                t + round((s - t) * left) for t, s in zip(loop.sparse.target, sizes, strict=True)
            ]
            assert loop.sparse._masks.counts() == wanted
    assert cycle == updates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be a whole number of at least 1"),
        ({"fraction": 0}, "`fraction` must be above 0"),
        ({"fraction": 1}, "`fraction` must be below 1"),
        ({"decay": "fast"}, "option `decay`: Input should be 'cosine'"),
        ({"explore": 0}, "`explore` of 0 leaves nothing to grow by"),
        ({"omega": 1}, "unknown option 'omega'; known: every, fraction"),
        ({"until": "soon"}, "option `until`"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(UsageError, match=message):
        SparsitySchedule.parse(100, options)


def test_default_lengths_follow_the_training():
    assert SparsitySchedule(1116).lengths(exploring=True) == (13, 0, 13)
    assert SparsitySchedule(10**6).lengths(exploring=True) == (150, 0, 150)
    assert SparsitySchedule(10**6).lengths(exploring=False) == (100, 0, 0)
    assert SparsitySchedule(1000).lengths(exploring=False) == (37, 0, 0)
