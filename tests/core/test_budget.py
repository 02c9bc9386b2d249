"""Budgets as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.core.budget import Budget
from prunekit.support.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "value", "relative"),
    [
        ("50%", "latency", 0.5, True),
        ("latency=50%", "latency", 0.5, True),
        (" latency = 50 % ", "latency", 0.5, True),
        ("100%", "latency", 1.0, True),
        ("2x", "latency", 0.5, True),
        ("1.6X", "latency", 0.625, True),
        ("12.5ms", "latency", 12.5, False),
        (".5 ms", "latency", 0.5, False),
        ("800us", "latency", 0.8, False),
        ("0.02s", "latency", 20.0, False),
        ("macs=40%", "macs", 0.4, True),
        ("MACs=1.5G", "macs", 1.5e9, False),
        ("macs=3e8", "macs", 3e8, False),
        ("params=4x", "params", 0.25, True),
        ("params=250k", "params", 250e3, False),
        ("params=7M", "params", 7e6, False),
    ],
)
def test_what_is_read(text, kind, value, relative):
    budget = Budget.parse(text)
    assert (budget.kind, budget.relative) == (kind, relative)
    assert budget.value == pytest.approx(value)
    assert str(budget) == text.strip()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read budget ''; write 50%, 12.5ms, 2x or macs=40%"),
        ("fast", "cannot read budget 'fast'"),
        ("-5ms", "cannot read budget '-5ms'"),
        ("50%%", "cannot read budget"),
        ("nan%", "cannot read budget"),
        ("0%", "must be above zero"),
        ("1e999ms", "must be above zero"),
        ("120%", "budget '120%' is above the dense cost; nothing to prune"),
        ("0.5x", "is above the dense cost"),
        ("flops=50%", "unknown budget kind 'flops' in 'flops=50%'; known: latency, macs, params"),
        ("50", "has no usable unit for latency; write 50%, 12.5ms or 2x"),
        ("50M", "has no usable unit for latency"),
        ("memory=5M", "has no usable unit for memory; write 40%, 2x or a size such as 8MiB"),
        ("memory=5ms", "has no usable unit for memory"),
        ("params=5MB", "has no usable unit for params"),
        ("macs=5ms", "has no usable unit for macs; write 40%, 2x or a count such as 1.5M"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert message in str(caught.value)


def test_the_kind_may_be_given_apart():
    assert Budget.parse("40%", "macs") == Budget("macs", 0.4, True, "40%")
    assert Budget.parse("latency=40%", "macs").kind == "latency"


@settings(derandomize=True)
@given(st.floats(0.01, 100), st.floats(1e-3, 1e12))
def test_limits(share, dense):
    assert Budget.parse(f"{share!r}%").limit(dense) == pytest.approx(share / 100 * dense)
    assert Budget.parse(f"{share:.6f}ms").limit(dense) == pytest.approx(share, abs=1e-5)


@settings(derandomize=True)
@given(st.text(max_size=12))
def test_nothing_crashes(text):
    try:
        budget = Budget.parse(text)
    except UsageError:
        return
    assert budget.value > 0
