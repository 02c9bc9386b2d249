"""A solver of your own: which widths fit. Here, random ones that keep the most."""

from dataclasses import dataclass

import numpy as np
import torch

import prunekit as pk
from prunekit import zoo
from prunekit.allocation.solvers import Problem, Solution
from prunekit.support.registry import allocators


@dataclass(frozen=True)
class Dice:
    """The best of `tries` random plans within the budget."""

    tries: int = 200
    seed: int = 0

    def solve(self, problem: Problem) -> Solution:
        """Widths for every variable; `infeasible` where even the least cost too much."""
        problem.check()
        rng = np.random.default_rng(self.seed)
        best = {variable.name: variable.widths[0] for variable in problem.variables}
        for _ in range(self.tries):
            widths = {v.name: int(rng.choice(v.widths)) for v in problem.variables}
            if problem.fits(widths) and problem.value(widths) > problem.value(best):
                best = widths
        value, cost = problem.value(best), problem.cost(best)
        bound = sum(max(variable.values) for variable in problem.variables)
        status = "feasible" if problem.fits(best) else "infeasible"
        return Solution(best, value, cost, bound, 1 - value / bound, status, "dice")


# A package registers it by an entry point instead:
#   [project.entry-points."prunekit.allocators"]
#   dice = "my_package:Dice"
allocators.register("dice", Dice)

torch.manual_seed(0)
model, example = zoo.build("resnet8").eval(), torch.randn(1, 3, 16, 16)
graph = pk.trace(model, example)
scores = pk.score(model, graph, pk.Magnitude())
table = pk.harvest(model, graph, example, "fake")
for solver in (Dice(), pk.Joint()):
    found = pk.allocate(graph, scores, table, pk.Budget.parse("50%"), solver=solver)
    print(f"{found.solver}: keeps {found.value:.1%} at {found.ratio:.1%} of the latency")
