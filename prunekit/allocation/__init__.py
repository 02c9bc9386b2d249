"""Choosing widths under a budget. NumPy and SciPy only."""

from prunekit.allocation.joint import Joint
from prunekit.allocation.knapsack import Knapsack
from prunekit.allocation.problem import Allocator, Problem, Solution, Term, Variable
from prunekit.allocation.uniform import Uniform

__all__ = ["Allocator", "Joint", "Knapsack", "Problem", "Solution", "Term", "Uniform", "Variable"]
