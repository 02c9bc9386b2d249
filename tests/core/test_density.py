"""How many weights each layer keeps: exact totals, caps, patterns, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.core.density import Pattern, WeightShape, counts, densities, parse_sparsity
from prunekit.support.errors import UsageError

SHAPES = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5)),
)
NETS = st.lists(SHAPES, min_size=1, max_size=9).map(
    lambda shapes: [WeightShape(f"layer{i}", shape) for i, shape in enumerate(shapes)]
)


@given(NETS, st.floats(0.001, 0.999), st.sampled_from(["erk", "uniform"]))
def test_counts_add_up_exactly(layers, sparsity, distribution):
    total = sum(layer.size for layer in layers)
    keep = round((1 - sparsity) * total)
    if not len(layers) <= keep < total:
        with pytest.raises(UsageError, match="ask for at"):
            counts(layers, sparsity, distribution)
        return
    found = counts(layers, sparsity, distribution)
    assert sum(found.values()) == keep
    assert all(1 <= found[layer.name] <= layer.size for layer in layers)


@given(NETS, st.floats(0.05, 0.95))
def test_erk_is_proportional_below_its_cap(layers, sparsity):
    keep = round((1 - sparsity) * sum(layer.size for layer in layers))
    found = densities(layers, keep, "erk")
    kept = sum(density * la.size for density, la in zip(found, layers, strict=True))
    assert kept == pytest.approx(keep, rel=1e-9, abs=1e-9)
    assert all(0 <= density <= 1 for density in found)
    raw = [sum(la.shape) / math.prod(la.shape) for la in layers]
    scales = [d / r for d, r in zip(found, raw, strict=True) if d < 1]
    assert scales == pytest.approx([scales[0]] * len(scales)) if scales else True
    # a full layer is one that would have taken more
    assert all(
        not scales or scales[0] * r >= 1 - 1e-9 for d, r in zip(found, raw, strict=True) if d == 1
    )


def test_erk_of_a_known_network():
    layers = [
        WeightShape("a", (512, 256)),
        WeightShape("b", (512, 512)),
        WeightShape("c", (36, 512)),
    ]
    found = counts(layers, 0.9)
    assert sum(found.values()) == round(0.1 * 411648)
    scale = 41165 / (768 + 1024 + 548)
    assert [found[n] for n in "abc"] == pytest.approx(
        [768 * scale, 1024 * scale, 548 * scale], abs=1
    )


def test_a_layer_that_erk_fills_is_dense_and_the_others_take_the_rest():
    layers = [WeightShape("small", (4, 4)), WeightShape("large", (100, 100))]
    found = counts(layers, 0.5)
    assert found == {"small": 16, "large": 5008 - 16}


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_nm_keeps_its_share_whatever_the_distribution(distribution):
    layers = [WeightShape("a", (8, 16)), WeightShape("b", (4, 8, 3, 3))]
    assert counts(layers, 0.5, distribution, Pattern(2, 4)) == {"a": 64, "b": 144}
    assert counts(layers, 0.75, distribution, Pattern(1, 4)) == {"a": 32, "b": 72}


@pytest.mark.parametrize(
    ("layers", "sparsity", "pattern", "message"),
    [
        ([(10, 10)], 0.0, "unstructured", "`sparsity` must be above 0 and below 1, not 0.0"),
        ([(10, 10)], 1.0, "unstructured", "`sparsity` must be above 0 and below 1, not 1.0"),
        ([(10, 10)], math.nan, "unstructured", "above 0 and below 1, not nan"),
        ([(10, 10)] * 2, 0.995, "unstructured", "leaves 1 of 200 weights for 2 layers"),
        ([(10, 10)], 0.001, "unstructured", "removes none of 100 weights"),
        ([(4, 6)], 0.5, "2:4", "2:4 does not divide layer l0, which has 6 inputs"),
        ([(4, 8)], 0.9, "2:4", "pattern 2:4 means a sparsity of 0.5, not 0.9"),
    ],
)
def test_what_the_layers_do_not_allow(layers, sparsity, pattern, message):
    shapes = [WeightShape(f"l{i}", shape) for i, shape in enumerate(layers)]
    with pytest.raises(UsageError, match=message):
        counts(shapes, sparsity, "erk", Pattern.parse(pattern))


@pytest.mark.parametrize("text", ["0", "1", "0%", "100%", "-5%", "90", "nan", "much", "", "%"])
def test_sparsity_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="above 0 and below 1"):
        parse_sparsity(text)


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:2", "2", "a:b", "2:4:8", ""])
def test_pattern_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="cannot read pattern"):
        Pattern.parse(text)


def test_sparsity_in_words():
    assert parse_sparsity("90%") == parse_sparsity("0.9") == pytest.approx(0.9)
    assert str(Pattern.parse("2:4")) == "2:4"
    assert str(Pattern.parse("unstructured")) == "unstructured"
