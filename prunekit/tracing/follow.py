"""A forward of the model with its channels followed: their atoms, what runs between layers."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.networks.running import call
from prunekit.support.errors import ModelError
from prunekit.tracing import operators  # noqa: F401 - registers what is known of operators
from prunekit.tracing.calls import flat
from prunekit.tracing.follow_dispatch import Flow, Operation
from prunekit.tracing.memory import Ledger
from prunekit.tracing.nodes import Atom
from prunekit.tracing.other_runs import Exports, chance, turns, variants
from prunekit.tracing.values import comparable, tensors

SECONDS = 60.0
"""How long channels may be followed; what is not reached by then stays as it is."""


@dataclass(frozen=True)
class Followed:
    """What one forward told."""

    flow: Flow
    atoms: list[Atom]
    operations: list[Operation]
    shapes: list[tuple[int, ...]]
    """Of the outputs in evaluation mode."""
    ledger: Ledger | None
    """What was alive when."""
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
            before = chance()
            out = call(model, example)
            drawn = before != chance()
            operations, values = list(flow.operations), list(flow.values)
            ledger, flow.ledger = flow.ledger, None
            others = _other_ways(flow, model, example, training_example)
        _refuse_nothing(example, out)
        if ledger is not None:
            ledger.keep(tensors(out))
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
    return Followed(flow, flow.nodes.atoms(), operations, shapes, ledger, notes)


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
