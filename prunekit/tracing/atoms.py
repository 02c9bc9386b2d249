"""A forward of the model with its channels followed: their atoms, what runs between layers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.errors import ModelError
from prunekit.tracing import operators  # noqa: F401 - registers what is known of operators
from prunekit.tracing.calls import flat
from prunekit.tracing.flow import QUESTIONS, Flow, Operation
from prunekit.tracing.nodes import Atom

SECONDS = 60.0
"""How long channels may be followed; what is not reached by then stays as it is."""
EXPORTS = ("tolist", "numpy", "__array__", "__dlpack__")
"""What hands all values of a tensor to others."""
TURNS = 8
"""Values asked for that are turned, each alone and all at once, to follow the other branch."""


@dataclass(frozen=True)
class Followed:
    """What one forward told."""

    flow: Flow
    atoms: list[Atom]
    operations: list[Operation]
    shapes: list[tuple[int, ...]]
    """Of the outputs in evaluation mode."""
    notes: tuple[str, ...] = ()
    """What one forward does not show, in words."""


def follow(
    model: nn.Module,
    example: Any,
    training_example: Any = None,
    *,
    whole_heads: bool = True,
) -> Followed:
    """Run ``model``, a copy on the CPU in evaluation mode, and follow its channels.

    With a ``training_example`` also in training mode, for heads that only training has. Where the
    forward asks for values it is run again with each of them turned, and where layers were not
    come to also with other sizes; what these might need stays if values decide about it.
    """
    flow = Flow(model, time.monotonic() + SECONDS, whole_heads=whole_heads)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), Exports(flow.tell), flow:
            before = _chance()
            out = call(model, example)
            drawn = before != _chance()
            operations, values = list(flow.operations), list(flow.values)
            others = _other_ways(flow, model, example, training_example)
        _refuse_nothing(example, out)
        flow.finish(tensors([out, *others]))
        if drawn:
            flow.freeze([flow.nodes.everything()], "the model's way depends on Python's chance")
        idle, where = flow.idle(), ", ".join(values)
        for name in idle if values else []:
            reason = f"{name} did not run and may need it: the way of {where} depends on values"
            flow.freeze_what_fits(name, reason)
    except ModelError:
        raise
    except Exception as error:
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"cannot trace {type(model).__name__}: {type(error).__name__}: {cause}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        flow.close()
        model.eval()
    shapes = [tuple(t.shape) for t in tensors(out)]
    notes = (
        *((f"its way may depend on values, in {where}",) if values else ()),
        *((f"no input tried came to {', '.join(idle)}: not cut, may fail",) if idle else ()),
    )
    return Followed(flow, flow.nodes.atoms(), operations, shapes, notes)


def _other_ways(flow: Flow, model: nn.Module, example: Any, training_example: Any) -> list[Any]:
    """What the model gives with values turned, in training mode, and of other sizes."""
    found = []
    until = flow.deadline - 0.75 * SECONDS

    def run(example: Any) -> None:
        with suppress(Exception):  # a detector needs targets, for example
            found.append(call(model, example))

    for turned in turns(list(flow.asked)):
        if time.monotonic() < until:
            with turned:
                run(example)
    if training_example is not None:
        _training(model)
        run(training_example)
        model.eval()
    for other in variants(example) if flow.idle() else []:
        if time.monotonic() < until:
            run(other)
    return found


class Turned(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives other values than those asked for in ``which`` questions, and remembers them all.

    The other truth value, the next or previous whole number, a number of another size and sign.
    """

    def __init__(self, which: Collection[int] = (), sign: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.which, self.sign = which, sign
        self.asked: list[bool] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, (bool, int, float)):
            return out
        if func.name().split("::")[-1].split(".")[0] not in QUESTIONS:
            return out
        self.asked.append(type(out) is bool)
        if len(self.asked) - 1 not in self.which:
            return out
        if isinstance(out, bool):
            return not out
        return out + self.sign * (1 if isinstance(out, int) else 1 + 2 * abs(out))

    def again(self) -> Turned:
        """The same, to be used once more."""
        return Turned(self.which, self.sign)


class Exports(TorchFunctionMode):
    """Tells where values leave PyTorch."""

    def __init__(self, tell: Callable[[], Any]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in EXPORTS:
            self.tell()
        return func(*args, **(kwargs or {}))


def turns(asked: Sequence[bool]) -> list[Turned]:
    """Ways to turn values asked for: each of the first ones alone, then all of them."""
    first = range(min(len(asked), TURNS))
    ways: list[tuple[tuple[int, ...], int]]
    ways = [((i,), sign) for i in first for sign in (1, -1) if sign > 0 or not asked[i]]
    if len(first) > 1:
        ways += [(tuple(first), sign) for sign in (1, -1)]
    return [Turned(*way) for way in ways]


def variants(example: Any) -> list[Any]:
    """The example twice, its first sample, and its pictures or sequences longer and shorter."""

    def longer(value: Tensor) -> Tensor:
        for axis in _sizes(value):
            value = torch.cat([value, value], axis)
        return value

    def shorter(value: Tensor) -> Tensor:
        for axis in _sizes(value):
            value = value.narrow(axis, 0, -(-value.shape[axis] // 2))
        return value

    one = each(example, lambda value: value[:1] if value.ndim else value)
    return [batch_of_two(example), one, each(example, longer), each(example, shorter)]


def _sizes(value: Tensor) -> range:
    """The axes of a picture's height and width, or of a sequence's length."""
    return range(2, value.ndim) if value.ndim > 3 else range(1, min(value.ndim, 2))


def _chance() -> Any:
    """The state of Python's and NumPy's random numbers."""
    state: Any = np.random.get_state()  # noqa: NPY002 - what models draw from
    return random.getstate(), state[1].tobytes(), state[2:]


def _refuse_nothing(example: Any, out: Any) -> None:
    if not comparable(out):
        raise ModelError("the model returns no tensor: what it does cannot be followed or compared")
    given = flat(example)
    if given and not any(t.numel() for t in given):
        raise ModelError("the example is empty; give one with a sample at least")


def _training(model: nn.Module) -> None:
    """Put the model in training mode, without chance."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()


def call(model: nn.Module, example: Any) -> Any:
    """``model`` on a tuple or dict of inputs, without compiling anything."""
    compiled = any(type(module).__name__ == "OptimizedModule" for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        return model(**example) if isinstance(example, dict) else model(*example)


def batch_of_two(example: Any) -> Any:
    """Every tensor of the example twice, for norms that want more than one value."""
    return each(example, lambda value: torch.cat([value, value]) if value.ndim else value)


def each(example: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``example``, a tuple or a dict, with all its tensors changed."""

    def convert(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    if isinstance(example, dict):
        return {name: convert(value) for name, value in example.items()}
    return tuple(convert(value) for value in example)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a model's output: any nesting of sequences, dicts and dataclasses."""
    return [found for found in leaves(value) if isinstance(found, Tensor)]


def comparable(value: Any) -> list[Tensor]:
    """All of a model's output that can be compared, numbers included, as dense real tensors."""
    found = []
    for leaf in leaves(value):
        if isinstance(leaf, Tensor):
            plain = leaf.dequantize() if leaf.is_quantized else leaf
            plain = plain if plain.layout == torch.strided else plain.to_dense()
            found.append(torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain)
        elif isinstance(leaf, (bool, int, float)):
            found.append(torch.tensor(float(leaf)))
    return found


def leaves(value: Any) -> list[Any]:
    """All tensors, numbers, texts and Nones of a model's output."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, part.name) for part in fields(value) if hasattr(value, part.name)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [leaf for item in value for leaf in leaves(item)]
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return [value]
    raise ModelError(
        f"the model returns a {type(value).__name__}, in which tensors cannot be followed; "
        "return a tensor, tuple, list, dict or dataclass"
    )
