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
    tries: int = 200

    def solve(self, problem: Problem) -> Solution:
        problem.check()
        rng = np.random.default_rng(0)
        best = {variable.name: variable.widths[0] for variable in problem.variables}
        for _ in range(self.tries):
            widths = {v.name: int(rng.choice(v.widths)) for v in problem.variables}
            if problem.fits(widths) and problem.value(widths) > problem.value(best):
                best = widths
        value, bound = problem.value(best), sum(max(v.values) for v in problem.variables)
        status = "feasible" if problem.fits(best) else "infeasible"
        return Solution(best, value, problem.cost(best), bound, 1 - value / bound, status, "dice")


allocators.register("dice", Dice)  # a package does it by an entry point

torch.manual_seed(0)
model, example = zoo.build("resnet8").eval(), torch.randn(1, 3, 16, 16)
graph = pk.trace(model, example)
scores = pk.score(model, graph, pk.Magnitude())
table = pk.harvest(model, graph, example, "fake")
for solver in (Dice(), pk.Joint()):
    best = pk.allocate(graph, scores, table, pk.Budget.parse("50%"), solver=solver)
    print(f"{best.solver}: keeps {best.value:.1%} at {best.ratio:.1%} of the latency")
