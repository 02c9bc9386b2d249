"""Allocation problems: small ones with their optimum by brute force, and network-sized ones."""

from __future__ import annotations

import itertools
import math
import os

import numpy as np
from hypothesis import strategies as st

from prunekit.allocation.solvers import (
    Problem,
    Term,
    Variable,
)

# eighths add up without rounding, so that budgets met exactly are met exactly
EIGHTH = 0.125
TIMES = int(os.environ.get("PRUNEKIT_EXAMPLES", "1"))


def plans(problem):
    names = [v.name for v in problem.variables]
    for widths in itertools.product(*(v.widths for v in problem.variables)):
        yield dict(zip(names, widths, strict=True))


def optimum(problem):
    """The best value within the budget (None: nothing fits) and the least cost, by trying all."""
    best, least = None, math.inf
    for widths in plans(problem):
        cost = problem.cost(widths)
        least = min(least, cost)
        if cost <= problem.budget and (best is None or problem.value(widths) > best):
            best = problem.value(widths)
    return best, least


def lookup(seed, kind):
    """A cost function in eighths: monotone, rough, negative at places, or zero."""

    def cost(cin, cout):
        cin, cout = np.broadcast_arrays(np.asarray(cin), np.asarray(cout))
        noise = (cin * 7919 + cout * 104729 + seed * 1299709) % 61
        return {
            "product": cin * cout * EIGHTH * (1 + seed % 3),
            "stairs": (-(-cin // 4)) * (-(-cout // 4)) * 1.0,
            "rough": cin * cout * EIGHTH + noise * EIGHTH,
            "noise": noise * EIGHTH - 3.0,
            "zero": np.zeros(cin.shape),
        }[kind].astype(float)

    return cost


KINDS = st.sampled_from(["product", "stairs", "rough", "noise", "zero"])


@st.composite
def problems(draw):
    count = draw(st.integers(1, 5))
    names = [f"g{i}" for i in range(count)]
    variables = []
    for name in names:
        step = draw(st.sampled_from([1, 2, 4]))
        size = draw(st.integers(1, 4))
        widths = tuple(step * (i + 1) for i in range(size))
        scores = draw(st.lists(st.integers(0, 6), min_size=size, max_size=size))
        values = np.cumsum(sorted(scores, reverse=True)) * EIGHTH
        variables.append(Variable(name, widths, tuple(values.tolist())))
    # concatenations grow by one part at a time, so prefixes are shared, or are any mixture
    order = draw(st.permutations(names))
    parts = st.one_of(
        st.integers(0, count).map(lambda n: tuple((name, 1) for name in order[:n])),
        st.lists(st.tuples(st.sampled_from(names), st.integers(1, 3)), max_size=3).map(tuple),
        st.sampled_from(names).map(lambda name: ((name, 1),)),
    )
    terms = []
    for i in range(draw(st.integers(0, 6))):
        into, fixed = draw(parts), draw(st.integers(0, 3))
        out, out_fixed = (into, fixed) if draw(st.booleans()) else (draw(parts), 2)
        cost = lookup(draw(st.integers(0, 50)), draw(KINDS))
        terms.append(Term(f"t{i}", into, fixed, out, out_fixed, cost))
    problem = Problem(tuple(variables), tuple(terms), 0.0, draw(st.sampled_from([0.0, 1.5, -2.0])))
    costs = [problem.cost(widths) for widths in plans(problem)]
    share = draw(st.sampled_from([-0.05, 0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.1]))
    budget = min(costs) + share * (max(costs) - min(costs)) - (0.125 if share < 0 else 0.0)
    budget = math.floor(budget / EIGHTH) * EIGHTH if share not in (0.0, 1.0) else budget
    start = {v.name: draw(st.sampled_from(v.widths)) for v in variables}
    start = draw(st.sampled_from([None, start]))
    return Problem(problem.variables, problem.terms, budget, problem.constant, start)


def group(name, full, rng, step=8, scale=1.0):
    scores = np.sort(rng.gamma(0.7, scale * rng.uniform(0.3, 2.0), full))[::-1]
    widths = tuple(range(step, full + 1, step))
    return Variable(name, widths, tuple(np.cumsum(scores)[np.array(widths) - 1].tolist()))


def conv(name, into, out, kernel, side, rng):
    """A layer on a staircase of 16 in- and 32 out-channels, with ripple and memory traffic."""
    speed = rng.uniform(0.8, 1.2)

    def cost(cin, cout):
        work = side**2 * kernel**2 * (-(-cin // 16) * 16) * (-(-cout // 32) * 32)
        ripple = 1 + 0.03 * np.sin(0.7 * cin + 1.3 * cout)
        return speed * (2e-7 * work * ripple + 2e-7 * side**2 * (cin + cout)) + 0.01

    def parts(side):
        return ((), side) if isinstance(side, int) else (tuple((n, 1) for n in side), 0)

    return Term(name, *parts(into), *parts(out), cost)


def at_budget(variables, terms, share):
    problem = Problem(tuple(variables), tuple(terms), math.inf)
    full = problem.cost({v.name: v.widths[-1] for v in variables})
    return Problem(tuple(variables), tuple(terms), share * full)


def resnet50(share):
    rng = np.random.default_rng(0)
    variables, terms = [group("stem", 64, rng)], [conv("stem", 3, ["stem"], 7, 112, rng)]
    stream, side = "stem", 56
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        out = f"stage{stage}"
        variables.append(group(out, 4 * width, rng, scale=2.0))
        for block in range(blocks):
            a, b = f"{out}.{block}.a", f"{out}.{block}.b"
            variables += [group(a, width, rng), group(b, width, rng)]
            terms.append(conv(a, [stream], [a], 1, side, rng))
            if stage and not block:
                side //= 2
            terms.append(conv(b, [a], [b], 3, side, rng))
            terms.append(conv(f"{out}.{block}.c", [b], [out], 1, side, rng))
            if not block:
                terms.append(conv(f"{out}.down", [stream], [out], 1, side, rng))
            stream = out
    terms.append(conv("fc", [stream], 1000, 1, 1, rng))
    return at_budget(variables, terms, share)


def densenet121(share, step=16):
    rng = np.random.default_rng(0)
    variables, terms = [group("stem", 64, rng, step)], [conv("stem", 3, ["stem"], 7, 112, rng)]
    first, width, side = "stem", 64, 56
    for block, layers in enumerate((6, 12, 24, 16)):
        read = [first]
        for layer in range(layers):
            inner, new = f"{block}.{layer}.inner", f"{block}.{layer}.new"
            variables += [group(inner, 128, rng, step), group(new, 32, rng, step)]
            terms.append(conv(inner, list(read), [inner], 1, side, rng))
            terms.append(conv(new, [inner], [new], 3, side, rng))
            read.append(new)
        if block == 3:
            terms.append(conv("fc", read, 1000, 1, 1, rng))
            break
        width, first = (width + 32 * layers) // 2, f"transition{block}"
        variables.append(group(first, width, rng, step))
        terms.append(conv(first, read, [first], 1, side, rng))
        side //= 2
    return at_budget(variables, terms, share)


def flat(cin, cout):
    return 0.0 * cin * cout


def term(parts=(("a", 1),), cost=flat):
    return Term("conv", parts, 0, parts, 0, cost)
