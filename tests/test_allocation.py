"""The allocators against brute force, and the joint one on network-sized problems.

`PRUNEKIT_EXAMPLES=20` tries twenty times as many random problems.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.allocation.solvers import (
    Greedy,
    Joint,
    Knapsack,
    Limit,
    Milp,
    Problem,
    Term,
    Uniform,
    Variable,
)
from prunekit.allocation.solvers.elimination import Elimination
from prunekit.allocation.solvers.factors import compile_graph
from prunekit.allocation.solvers.joint import _Search
from prunekit.allocation.solvers.knapsack import marginal_prices
from prunekit.allocation.solvers.problem import relative_gap
from prunekit.support.errors import UsageError

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


@settings(max_examples=300 * TIMES, deadline=None)
@given(problems(), st.sampled_from([0.0, 1e-4, 0.05]), st.sampled_from([3, 400]))
def test_joint_against_brute_force(problem, gap, iterations):
    solution = Joint(gap=gap, iterations=iterations).solve(problem)
    best, least = optimum(problem)
    assert solution.cost == problem.cost(solution.widths)
    assert solution.value == problem.value(solution.widths)
    if best is None:
        assert solution.status == "infeasible"
        assert solution.cost == least
        return
    assert solution.status in ("optimal", "feasible")
    assert solution.cost <= problem.budget
    tolerance = 1e-9 * max(abs(best), 1.0)
    assert solution.bound >= best - tolerance
    assert solution.value >= best - solution.gap * abs(solution.bound) - tolerance
    assert solution.gap == pytest.approx(
        (solution.bound - solution.value) / max(abs(solution.bound), 1e-12)
    )
    assert (solution.status == "optimal") == (solution.gap <= gap)
    if iterations == 400:
        assert solution.status == "optimal"


@settings(max_examples=150 * TIMES, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.3, 2.0]))
def test_what_each_width_allows_at_best(problem, price):
    """Max-marginals against the best of all plans with that width."""
    graph = compile_graph(problem)
    found = Elimination(graph).marginals(1.0, (price,))
    expected = [np.full(len(value), -np.inf) for value in graph.values]
    for choice in itertools.product(*(range(len(value)) for value in graph.values)):
        at = np.array(choice, dtype=np.int64)
        worth = graph.value(at) - graph.fixed_value
        worth -= price * (graph.cost(at) - graph.fixed_costs[0])
        for most, index in zip(expected, choice, strict=True):
            most[index] = max(most[index], worth)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-9)


def test_a_duality_gap_is_closed_by_dropping_widths():
    """Ripples on every layer's cost: tangents alone leave half a percent."""
    rng = np.random.default_rng(3)
    widths = tuple(range(8, 129, 8))
    variables = tuple(
        Variable(f"g{i}", widths, tuple(np.cumsum(-np.sort(-rng.random(16))).tolist()))
        for i in range(12)
    )

    def rippled(cin, cout):
        return cin * np.ceil(cout / 64) * 64 * (1 + 0.05 * np.sin(0.7 * cin + 1.3 * cout)) / 1e4

    terms = tuple(
        Term(f"t{i}", ((f"g{i}", 1),), 0, ((f"g{(i + 1) % 12}", 1),), 0, rippled) for i in range(12)
    )
    full = Problem(variables, terms, math.inf).cost({v.name: 128 for v in variables})
    problem = Problem(variables, terms, 0.3 * full)
    search = _Search(problem, 1e-5, 60)
    cheapest = search.evaluate(0.0, 1.0)[0]
    search.offer(cheapest)
    bound = search.run(cheapest)
    assert relative_gap(search.best.value, bound) <= 1e-5
    reference = Milp().solve(problem)
    assert search.best.value == pytest.approx(reference.value, rel=2e-5)


@settings(max_examples=150 * TIMES, deadline=None)
@given(problems())
def test_milp_agrees_with_brute_force(problem):
    solution = Milp().solve(problem)
    best, _ = optimum(problem)
    if best is None:
        assert solution.status == "infeasible"
        return
    # HiGHS holds constraints to a millionth of their scale
    assert solution.cost <= problem.budget + 1e-5
    if solution.cost <= problem.budget:
        assert solution.value == pytest.approx(best, abs=1e-6)
    assert solution.bound >= best - 1e-6


@settings(max_examples=200 * TIMES, deadline=None)
@given(problems(), st.booleans())
def test_greedy_lands_within_the_budget_or_where_nothing_saves(problem, jumps):
    solution = Greedy(jumps=jumps).solve(problem)
    best, _ = optimum(problem)
    assert solution.cost == problem.cost(solution.widths)
    assert solution.value == problem.value(solution.widths)
    assert (solution.status == "feasible") == (solution.cost <= problem.budget)
    if solution.status == "feasible":
        assert solution.value <= best
        assert solution.bound >= best
        return
    for variable in problem.variables:
        place = variable.widths.index(solution.widths[variable.name])
        lower = variable.widths[:place] if jumps else variable.widths[max(0, place - 1) : place]
        for width in lower:
            other = problem.cost(solution.widths | {variable.name: width})
            assert other >= solution.cost - 1e-9


@st.composite
def limited(draw):
    """A problem with one or two further budgets."""
    first = draw(problems())
    limits = []
    for number in range(draw(st.integers(1, 2))):
        names = [v.name for v in first.variables]
        terms = tuple(
            Term(
                f"l{number}{i}",
                ((draw(st.sampled_from(names)), 1),),
                draw(st.integers(0, 2)),
                ((draw(st.sampled_from(names)), 1),),
                0,
                lookup(draw(st.integers(0, 50)), draw(st.sampled_from(["product", "stairs"]))),
            )
            for i in range(draw(st.integers(1, 3)))
        )
        other = Problem(first.variables, terms, 0.0)
        costs = [other.cost(widths) for widths in plans(first)]
        share = draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
        budget = min(costs) + share * (max(costs) - min(costs))
        budget = math.floor(budget / EIGHTH) * EIGHTH if 0 < share < 1 else budget
        limits.append(Limit(f"limit {number}", terms, budget))
    return Problem(first.variables, first.terms, first.budget, first.constant, limits=tuple(limits))


@settings(max_examples=200 * TIMES, deadline=None)
@given(limited())
def test_several_budgets_against_brute_force(problem):
    solution = Joint(iterations=60).solve(problem)
    best = max((problem.value(w) for w in plans(problem) if problem.fits(w)), default=None)
    if best is None:
        assert solution.status == "infeasible"
        return
    if solution.status == "infeasible":  # none found is no proof, with several budgets
        return
    assert problem.fits(solution.widths)
    tolerance = 1e-7 * max(abs(best), 1.0)
    assert solution.value <= best + tolerance
    assert solution.bound >= best - tolerance
    assert solution.value >= best - solution.gap * abs(solution.bound) - tolerance


def test_several_budgets_are_mostly_met_at_their_best():
    """How often the heuristic part finds the optimum, and whether it ever misses a plan."""
    found = hits = missed = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        variables = tuple(
            Variable(f"g{i}", (1, 2, 3, 4), tuple(np.cumsum(-np.sort(-rng.random(4))).tolist()))
            for i in range(4)
        )
        terms = tuple(
            Term(f"t{i}", ((f"g{i}", 1),), 0, ((f"g{(i + 1) % 4}", 1),), 0, lookup(seed, "rough"))
            for i in range(4)
        )
        size = tuple(
            Term(f"s{i}", ((f"g{i}", 1),), 0, (), 1, lambda i, o: 1.0 * i * o) for i in range(4)
        )
        full = {v.name: 4 for v in variables}
        bare = Problem(variables, terms, math.inf)
        least = min(bare.cost(w) for w in plans(bare))
        budget = least + 0.5 * (bare.cost(full) - least)
        problem = Problem(variables, terms, budget, limits=(Limit("size", size, 11.0),))
        best = max((problem.value(w) for w in plans(problem) if problem.fits(w)), default=None)
        if best is None:
            continue
        found += 1
        solution = Joint().solve(problem)
        missed += solution.status == "infeasible"
        hits += solution.status != "infeasible" and solution.value >= best - 1e-9
    assert found > 100
    assert missed == 0
    assert hits >= 0.9 * found


def test_milp_takes_a_budget_that_is_met_to_the_last_digit():
    choice = Variable("g", (8, 11), (0.3, 0.4))
    terms = tuple(
        Term(f"t{i}", (), 1, (), 1, lambda _i, _o, c=c: c) for i, c in enumerate((0.1, 0.1, 0.3))
    )
    bare = Problem((choice,), terms, 0.0, constant=0.1)
    problem = replace(bare, budget=bare.cost({"g": 8}))
    assert compile_graph(problem).fixed_costs[0] > problem.budget  # added up in another order
    found = Milp().solve(problem)
    assert (found.status, found.widths) == ("optimal", {"g": 11})


def test_milp_agrees_on_a_network_under_two_budgets():
    rng = np.random.default_rng(3)
    variables = tuple(group(f"g{i}", 64, rng, step=16) for i in range(5))
    names = [v.name for v in variables]
    terms = tuple(conv(f"c{i}", [names[i]], [names[i + 1]], 3, 14, rng) for i in range(4))
    weights = tuple(
        Term(t.name, t.in_parts, 0, t.out_parts, 0, lambda i, o: 9.0 * i * o) for t in terms
    )
    full = {v.name: v.widths[-1] for v in variables}
    bare = Problem(variables, terms, math.inf)
    limit = Limit("parameters", weights, 0.4 * sum(t.at(full) for t in weights))
    problem = Problem(variables, terms, 0.5 * bare.cost(full), limits=(limit,))
    joint, exact = Joint(iterations=100).solve(problem), Milp().solve(problem)
    assert exact.status == "optimal"
    assert problem.fits(joint.widths)
    assert joint.value == pytest.approx(exact.value, rel=5e-3)
    assert joint.bound >= exact.value * (1 - 1e-9)
    for solver in (Knapsack(), Uniform(), Greedy()):
        with pytest.raises(UsageError, match="takes one budget only, not parameters too"):
            solver.solve(problem)


def test_several_budgets_do_not_depend_on_the_size_of_scores():
    rng = np.random.default_rng(5)
    found = []
    for scale in (1.0, 1e-12):
        variables = tuple(
            Variable(f"g{i}", (1, 2, 3, 4), tuple((scale * v).tolist()))
            for i, v in enumerate(np.cumsum(-np.sort(-rng.random((4, 4))), axis=1))
        )
        rng = np.random.default_rng(5)
        cost = lookup(1, "product")
        terms = tuple(
            Term(f"t{i}", ((f"g{i}", 1),), 0, ((f"g{(i + 1) % 4}", 1),), 0, cost) for i in range(4)
        )
        size = Limit("size", (Term("s", (("g0", 1), ("g1", 1)), 0, (), 1, cost),), 0.5)
        problem = Problem(variables, terms, 4.0, limits=(size,))
        found += [Joint().solve(problem), Milp().solve(problem)]
    assert len({tuple(s.widths.values()) for s in found}) == 1
    assert found[2].gap == pytest.approx(found[0].gap, abs=1e-9)


def test_greedy_with_jumps_gets_over_steps_that_save_nothing():
    steps = tuple(range(8, 65, 8))
    values = tuple(float(w) for w in steps)
    a, b = Variable("a", steps, values), Variable("b", steps, tuple(1.05 * v for v in values))
    flat = Term("a", (("a", 1),), 0, (), 1, lambda i, o: 1.0 * (-(-i // 32)) * 32 * o)
    even = Term("b", (("b", 1),), 0, (), 1, lambda i, o: 1.0 * i * o)
    problem = Problem((a, b), (flat, even), 96.0)
    plain, jumps, joint = (s.solve(problem) for s in (Greedy(), Greedy(jumps=True), Joint()))
    assert plain.value < jumps.value == joint.value


@settings(max_examples=200 * TIMES, deadline=None)
@given(problems())
def test_knapsack_is_exact_in_its_own_model(problem):
    prices, fixed = marginal_prices(problem)
    slack = problem.budget - fixed - sum(float(p.min()) for p in prices)
    # cells of an eighth or finer, so that no price is rounded
    steps = max(1, round(slack / EIGHTH))
    solution = Knapsack(steps=steps).solve(problem)
    best = None
    for choice in itertools.product(*(range(len(v.widths)) for v in problem.variables)):
        price = fixed + sum(float(p[i]) for p, i in zip(prices, choice, strict=True))
        value = sum(v.values[i] for v, i in zip(problem.variables, choice, strict=True))
        if price <= problem.budget and (best is None or value > best):
            best = value
    if best is None:
        assert solution.widths == {v.name: v.widths[0] for v in problem.variables}
    else:
        assert solution.value == best
    assert solution.cost == problem.cost(solution.widths)
    assert (solution.status == "feasible") == (solution.cost <= problem.budget)
    assert solution.bound >= max(problem.value(w) for w in plans(problem))


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


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_joint_on_a_resnet50(share):
    problem = resnet50(share)
    solution = Joint().solve(problem)
    assert solution.cost <= problem.budget
    assert solution.gap <= 1e-3
    assert solution == Joint().solve(problem)
    assert solution.value > Knapsack().solve(problem).value


def test_joint_shares_the_prefixes_of_a_densenet121():
    problem = densenet121(0.5)
    solution = Joint().solve(problem)
    assert solution.cost <= problem.budget
    assert solution.gap <= 1e-3


def test_the_order_of_concatenation_does_not_matter():
    problem = densenet121(0.5)
    turned = [
        Term(t.name, t.in_parts[::-1], t.in_fixed, t.out_parts, t.out_fixed, t.cost)
        for t in problem.terms
    ]
    mirrored = Problem(problem.variables, tuple(turned), problem.budget)
    assert Joint().solve(mirrored) == Joint().solve(problem)


def test_a_group_bound_by_two_sums_at_once():
    names = ("a", "b", "c", "d")
    sizes = ((2, 4), (1, 2, 3), (1, 2), (1, 2, 3, 4))
    variables = tuple(
        Variable(n, widths, tuple(float(w * w) for w in widths))
        for n, widths in zip(names, sizes, strict=True)
    )
    parts = tuple((n, 1) for n in names)
    terms = (
        Term("pair", parts[:1], 0, parts[2:3], 2, lookup(3, "rough")),
        Term("sums", parts, 0, (("a", 1), ("b", 2)), 2, lookup(5, "noise")),
    )
    for budget in np.arange(-2.0, 8.0, 0.5):
        problem = Problem(variables, terms, float(budget))
        best, _ = optimum(problem)
        solution = Joint(gap=0.0, iterations=400).solve(problem)
        assert solution.status == ("infeasible" if best is None else "optimal")
        assert best is None or solution.value == best


def test_groups_too_entangled_for_memory_are_refused(monkeypatch):
    monkeypatch.setattr("prunekit.allocation.solvers.elimination.LARGEST_TABLE", 1000)
    with pytest.raises(UsageError, match="use a coarser granularity"):
        Joint().solve(resnet50(0.5))


@pytest.mark.parametrize(
    "solver", [Joint(gap=-1.0), Joint(gap=math.nan), Joint(iterations=0), Knapsack(steps=0)]
)
def test_settings_out_of_range(solver):
    with pytest.raises(UsageError, match="the least is"):
        solver.solve(Problem((), (), 1.0))


def test_knapsack_does_not_see_what_the_next_layer_saves():
    a = Variable("a", (1, 2), (1.0, 2.0))
    terms = (
        Term("first", (), 1, (("a", 1),), 0, lambda i, o: 1.0 * i * o),
        Term("second", (("a", 1),), 0, (), 8, lambda i, o: 1.0 * i * o),
    )
    problem = Problem((a,), terms, budget=10.0)
    knapsack, joint = Knapsack().solve(problem), Joint().solve(problem)
    assert joint.widths == {"a": 1}
    # 16 of the second layer are spent whatever `a` is, the model believes
    assert knapsack.widths == {"a": 1}
    assert knapsack.status == "feasible"
    roomy = Problem((a,), terms, budget=17.5)
    assert Knapsack().solve(roomy).cost == 9.0


def test_knapsack_moves_both_sides_of_a_depthwise_layer():
    a = Variable("a", (2, 4), (1.0, 2.0))
    term = Term("dw", (("a", 1),), 0, (("a", 1),), 0, lambda i, o: 1.0 * i * o)
    prices, fixed = marginal_prices(Problem((a,), (term,), 16.0))
    assert (prices[0] + fixed).tolist() == [4.0, 16.0]


def test_knapsack_holds_in_widths_at_the_start():
    variables = (Variable("a", (2, 4), (1.0, 2.0)), Variable("b", (2, 4), (1.0, 2.0)))
    term = Term("conv", (("a", 1),), 0, (("b", 1),), 0, lambda i, o: 1.0 * i * o)
    prices, fixed = marginal_prices(Problem(variables, (term,), 16.0, start={"a": 3, "b": 4}))
    assert prices[0].tolist() == [0.0, 0.0]
    assert (prices[1] + fixed).tolist() == [6.0, 12.0]


@pytest.mark.parametrize("solver", [Joint(), Knapsack()])
def test_no_variables_and_no_terms(solver):
    assert solver.solve(Problem((), (), 1.0, 0.5)).widths == {}
    assert solver.solve(Problem((), (), 1.0, 1.5)).status == "infeasible"


def test_an_unlimited_budget_keeps_everything():
    problem = resnet50(1.0)
    unlimited = Problem(problem.variables, problem.terms, math.inf)
    for solver in (Joint(), Knapsack()):
        assert solver.solve(unlimited).widths == {v.name: v.widths[-1] for v in problem.variables}


def test_among_equal_values_the_cheaper_plan():
    a = Variable("a", (1, 2, 3), (1.0, 1.0, 1.0))
    term = Term("t", (("a", 1),), 0, (), 1, lambda i, o: np.where(i == 2, 0.0, 1.0 * i * o))
    solution = Joint().solve(Problem((a,), (term,), 9.0))
    assert solution.widths == {"a": 2}


A = Variable("a", (1, 2), (1.0, 2.0))


def flat(cin, cout):
    return 0.0 * cin * cout


def term(parts=(("a", 1),), cost=flat):
    return Term("conv", parts, 0, parts, 0, cost)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem((A,), (), math.nan), "`budget` is nan"),
        (Problem((A, A), (), 1.0), "variable `a` is given twice"),
        (Problem((A,), (term((("b", 1),)),), 1.0), "term `conv` reads `b`"),
        (Problem((A,), (term((("a", 0),)),), 1.0), "term `conv` repeats `a` 0 times"),
        (Problem((Variable("a", (2, 1), (1.0, 2.0)),), (), 1.0), "widths of `a` are (2, 1)"),
        (Problem((Variable("a", (1, 2), (1.0,)),), (), 1.0), "`a` has 2 widths but 1 values"),
        (
            Problem((Variable("a", (1, 2), (1.0, math.nan)),), (), 1.0),
            "value of `a` at width 2 is nan",
        ),
        (Problem((A,), (), 1.0, start={}), "`start` lacks a width for `a`"),
        (
            Problem((A,), (term(cost=lambda i, o: np.where(i == 1, np.nan, 1.0 * o)),), 1.0),
            "the cost of `conv` is",
        ),
    ],
)
@pytest.mark.parametrize("solver", [Joint(), Knapsack()])
def test_what_cannot_be_solved_is_named(solver, problem, message):
    with pytest.raises(UsageError) as error:
        solver.solve(problem)
    assert message in str(error.value)


def test_a_nan_cost_is_placed():
    bad = term(cost=lambda i, o: np.where(i == 2, np.nan, 1.0 * o))
    with pytest.raises(UsageError, match="`conv` is nan at in-width 2 and out-width 2"):
        Joint().solve(Problem((A,), (bad,), 1.0))


def test_uniform_narrows_every_group_by_the_largest_factor_that_fits():
    def area(cin, cout):
        return (cin * cout).astype(float)

    variables = (
        Variable("a", (4, 8, 12, 16), (1.0, 2.0, 3.0, 4.0)),
        Variable("b", (8, 16, 24, 32), (5.0, 6.0, 7.0, 8.0)),
        Variable("fixed", (3,), (0.0,)),
    )
    terms = (
        Term("first", (("fixed", 1),), 0, (("a", 1),), 0, area),
        Term("second", (("a", 1),), 0, (("b", 1),), 0, area),
    )

    def cost(a, b):
        return 3 * a + a * b

    steps = [(4, 8), (8, 16), (12, 24), (16, 32)]
    for budget in range(int(cost(4, 8)), cost(16, 32) + 20, 7):
        found = Uniform().solve(Problem(variables, terms, budget))
        best = max(step for step in steps if cost(*step) <= budget)
        assert (found.widths["a"], found.widths["b"]) == best
        assert found.widths["fixed"] == 3
        assert found.cost == cost(*best)
        assert found.status == "feasible"
        assert found.bound == 12 >= found.value == best[0] / 4 + best[1] / 8 + 4
        assert found.gap == pytest.approx(1 - found.value / 12)
    least = Uniform().solve(Problem(variables, terms, cost(4, 8) - 1))
    assert (least.status, least.cost) == ("infeasible", cost(4, 8))
