"""Solvers: the best widths of a stated problem. NumPy and SciPy only."""

from prunekit.allocation.solvers.greedy import Greedy
from prunekit.allocation.solvers.joint import Joint
from prunekit.allocation.solvers.knapsack import Knapsack
from prunekit.allocation.solvers.milp import Milp
from prunekit.allocation.solvers.problem import Allocator, Limit, Problem, Solution, Term, Variable
from prunekit.allocation.solvers.uniform import Uniform

ONE_BUDGET = (Greedy, Knapsack, Uniform)
"""Solvers that take no further limits."""

__all__ = [
    "Allocator",
    "Greedy",
    "Joint",
    "Knapsack",
    "Limit",
    "Milp",
    "Problem",
    "Solution",
    "Term",
    "Uniform",
    "Variable",
]
