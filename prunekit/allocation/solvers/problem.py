"""The allocation problem, free of models and tables: widths to choose, values, layer costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from prunekit.support.errors import UsageError

Array = NDArray[np.float64]
CostFunction = Callable[[NDArray[np.int64], NDArray[np.int64]], Array]


@dataclass(frozen=True)
class Variable:
    """One channel group: its allowed widths, ascending (the last is full), and V at each."""

    name: str
    widths: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Term:
    """One layer's cost as a function of its in- and out-width.

    A width is ``fixed`` plus the sum of ``repeat * width(variable)`` over ``parts``. ``cost``
    takes integer arrays (in-widths, out-widths) that broadcast and returns their costs, which may
    be non-monotone and even negative.
    """

    name: str
    in_parts: tuple[tuple[str, int], ...]
    in_fixed: int
    out_parts: tuple[tuple[str, int], ...]
    out_fixed: int
    cost: CostFunction = field(compare=False)

    def at(self, widths: Mapping[str, int]) -> float:
        """The cost at the given group widths."""
        cin = self.in_fixed + sum(r * widths[v] for v, r in self.in_parts)
        cout = self.out_fixed + sum(r * widths[v] for v, r in self.out_parts)
        return float(self.cost(np.asarray(cin), np.asarray(cout)))


@dataclass(frozen=True)
class Limit:
    """One more budget: constant + sum of term costs <= budget."""

    name: str
    terms: tuple[Term, ...]
    budget: float
    constant: float = 0.0

    def cost(self, widths: Mapping[str, int]) -> float:
        """Its cost at the given widths."""
        return self.constant + sum(term.at(widths) for term in self.terms)


@dataclass(frozen=True)
class Problem:
    """Maximise the sum of values subject to constant + sum of term costs <= budget.

    And to ``limits``, further budgets of their own costs, which not every solver knows.

    Examples:
        >>> from prunekit.allocation.solvers import Joint
        >>> group = Variable("conv", widths=(8, 16, 24), values=(5.0, 8.0, 9.0))
        >>> layer = Term("conv", (), 3, (("conv", 1),), 0, cost=lambda cin, cout: 0.1 * cin * cout)
        >>> Joint().solve(Problem((group,), (layer,), budget=5.0)).widths
        {'conv': 16}
    """

    variables: tuple[Variable, ...]
    terms: tuple[Term, ...]
    budget: float
    constant: float = 0.0
    start: Mapping[str, int] | None = None
    """Present widths, for solvers that price a channel at the margin; None is full."""
    limits: tuple[Limit, ...] = ()

    def cost(self, widths: Mapping[str, int]) -> float:
        """Total cost at the given widths."""
        return self.constant + sum(term.at(widths) for term in self.terms)

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether all budgets hold."""
        own = Limit("", self.terms, self.budget, self.constant)
        return all(limit.cost(widths) <= limit.budget for limit in (own, *self.limits))

    def single(self, solver: str) -> None:
        """Refuse further limits, for a solver that knows none."""
        if self.limits:
            names = ", ".join(limit.name for limit in self.limits)
            raise UsageError(
                f"the solver {solver} takes one budget only, not {names} too; use joint"
            )

    def value(self, widths: Mapping[str, int]) -> float:
        """Total value at the given widths."""
        return sum(v.values[v.widths.index(widths[v.name])] for v in self.variables)

    def check(self) -> None:
        """Raise UsageError, naming what is wrong, unless a solver can take this as given."""
        for budget in (self.budget, *(limit.budget for limit in self.limits)):
            if math.isnan(budget):
                raise UsageError("`budget` is nan; give a number")
        known: set[str] = set()
        for variable in self.variables:
            _check_variable(variable)
            if variable.name in known:
                raise UsageError(f"the variable `{variable.name}` is given twice; merge the two")
            known.add(variable.name)
        for term in (*self.terms, *(term for limit in self.limits for term in limit.terms)):
            for name, repeat in (*term.in_parts, *term.out_parts):
                if name not in known:
                    raise UsageError(
                        f"the term `{term.name}` reads `{name}`, which is no variable; add it"
                    )
                if repeat < 1:
                    raise UsageError(
                        f"the term `{term.name}` repeats `{name}` {repeat} times; the least is once"
                    )
        absent = sorted(known - set(self.start)) if self.start is not None else []
        if absent:
            raise UsageError(f"`start` lacks a width for `{absent[0]}`; give one per variable")


def _check_variable(variable: Variable) -> None:
    name, widths, values = variable.name, variable.widths, variable.values
    if not widths or any(a >= b for a, b in pairwise(widths)):
        raise UsageError(f"the widths of `{name}` are {widths}; they must ascend, at least one")
    if len(values) != len(widths):
        raise UsageError(
            f"`{name}` has {len(widths)} widths but {len(values)} values; give one per width"
        )
    for width, value in zip(widths, values, strict=True):
        if not math.isfinite(value):
            raise UsageError(
                f"the value of `{name}` at width {width} is {value}; "
                "every value must be a finite number"
            )


Status = Literal["optimal", "feasible", "infeasible"]


@dataclass(frozen=True)
class Solution:
    """Chosen widths with their value and cost, and a proved bound on the best value.

    ``gap`` is (bound - value) / max(|bound|, tiny); ``optimal`` means it is at most the solver's
    tolerance. When ``infeasible``, ``widths`` is the cheapest plan found and ``cost`` its cost.
    """

    widths: dict[str, int]
    value: float
    cost: float
    bound: float
    gap: float
    status: Status
    solver: str


def relative_gap(value: float, bound: float) -> float:
    """By how much a bound is above a value, in parts of the bound; never negative."""
    return max(0.0, bound - value) / max(abs(bound), 1e-12)


class Allocator(Protocol):
    """Chooses widths."""

    def solve(self, problem: Problem) -> Solution:
        """The best widths it can find within the budget."""
        ...
