"""A mode that sees every operator, and imports no compiler for that."""

import torch

from prunekit.tracing.dispatch import OperatorMode
from support.commands import python


class Counting(OperatorMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_it_sees_every_operator():
    with Counting() as counting:
        torch.ones(2) + torch.ones(2)
    assert counting.count == 3


def test_the_compiler_is_kept_off_where_it_is_loaded():
    compiled = torch.compile(lambda x: x * 2 + 1, backend="eager")
    x = torch.ones(2)
    with Counting() as counting:
        assert compiled(x).tolist() == [3, 3]
    assert counting.count > 0


def test_tracing_imports_no_compiler():
    code = """
import sys, torch
from torch import nn
from prunekit import trace
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
trace(model, torch.zeros(1, 3, 8, 8))
print(sorted({"torch._dynamo", "sympy", "torch.fx.experimental.symbolic_shapes"} & {*sys.modules}))
"""
    assert python(code).endswith("[]")
