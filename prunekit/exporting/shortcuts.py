"""PyTorch's exporter without what it does again and again, or by a long way round."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node

ACTIVATIONS = frozenset(
    """
    celu elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu sigmoid silu tanh
    threshold
    """.split()  # noqa: SIM905 - shorter than a list
)
"""Operators on single positions, which give the same whether or not they write over their input."""
MAKERS = frozenset(
    """
    add addmm batch_norm conv1d conv2d conv3d convolution group_norm layer_norm linear matmul mul
    sub
    """.split()  # noqa: SIM905 - shorter than a list
)
"""Operators that give memory of its own; others, such as dropout, may give what they were given."""


@contextlib.contextmanager
def shortcuts() -> Iterator[None]:
    """Let ``torch.onnx.export`` take shorter ways that lead to the same file.

    Exports share the translations of PyTorch's operators, which are else read from their sources
    each time; one export looks through all operators once, and not for each of their families; and
    activations in place are taken for those that are not where nothing else reads their input.
    Together that is more than half of a small model's export.
    """
    try:
        module = importlib.import_module("torch.onnx._internal.exporter._registration")
        registry, build = module.ONNXRegistry, module.ONNXRegistry.__dict__["from_torchlib"]
        gather = module.onnxscript_apis.get_torchlib_ops
        operators: Any = importlib.import_module("torch._export.utils")
        materialize = operators._materialize_cpp_cia_ops
        passes: Any = importlib.import_module("torch.onnx._internal.exporter._fx_passes")
        decompose = passes.decompose_with_registry
    except (ImportError, AttributeError, KeyError):  # another PyTorch, which may do as it likes
        yield
        return

    def shared(**opset: int) -> Any:
        kept, own = _gathered(build.__get__(None, registry), gather, **opset), registry()
        vars(own).update(vars(kept), functions={k: [*v] for k, v in kept.functions.items()})
        return own

    def decomposed(program: Any, *arguments: Any, **named: Any) -> Any:
        out_of_place_(program.graph_module)
        return decompose(program, *arguments, **named)

    registry.from_torchlib = staticmethod(shared)
    operators._materialize_cpp_cia_ops = functools.cache(materialize)
    passes.decompose_with_registry = decomposed
    try:
        yield
    finally:
        registry.from_torchlib = build
        operators._materialize_cpp_cia_ops = materialize
        passes.decompose_with_registry = decompose


@functools.cache
def _gathered(build: Callable[..., Any], gather: object, **opset: int) -> Any:
    """What ``build`` makes of what ``gather`` finds."""
    del gather  # a key only
    return build(**opset)


def out_of_place_(module: torch.fx.GraphModule) -> int:
    """Replace activations in place whose input nothing else has; how many there were.

    Of the others, which change what is read elsewhere, the exporter takes care itself.
    """
    count = 0
    for node in module.graph.nodes:
        plain = _out_of_place(node)
        if plain is not None and _is_its_own(node.args[0], node):
            node.target = plain
            count += 1
    if count:
        module.recompile()
    return count


def _out_of_place(node: Node) -> Any:
    """The operator that does the same as an activation in place; None for any other node."""
    operator = node.target
    if node.op != "call_function" or not isinstance(operator, torch._ops.OpOverload):
        return None
    name = operator._opname
    if operator.namespace != "aten" or not name.endswith("_") or name[:-1] not in ACTIVATIONS:
        return None
    plain = getattr(getattr(torch.ops.aten, name[:-1], None), operator._overloadname, None)
    if plain is None or len(plain._schema.arguments) != len(operator._schema.arguments):
        return None
    return plain


def _is_its_own(value: Any, reader: Node) -> bool:
    """Whether ``value`` was made anew, by an operator, for this reader alone."""
    if not isinstance(value, Node) or [*value.users] != [reader]:
        return False
    maker = value.target
    if value.op != "call_function" or not isinstance(maker, torch._ops.OpOverload):
        return False
    return maker.namespace == "aten" and maker._opname in MAKERS
