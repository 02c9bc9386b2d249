"""Choosing widths under a budget. NumPy and SciPy only."""

from prunekit.allocation.greedy import Greedy
from prunekit.allocation.joint import Joint
from prunekit.allocation.knapsack import Knapsack
from prunekit.allocation.milp import Milp
from prunekit.allocation.problem import Allocator, Limit, Problem, Solution, Term, Variable
from prunekit.allocation.uniform import Uniform

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
