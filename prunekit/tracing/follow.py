"""A forward of the model with its channels followed: their atoms, what runs between layers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.networks.running import call
from prunekit.support.errors import ModelError, first_line
from prunekit.tracing import operators  # noqa: F401 - registers what is known of operators
from prunekit.tracing.branches import ValueQuestions
from prunekit.tracing.calls import flat
from prunekit.tracing.follow_dispatch import Flow
from prunekit.tracing.labels import Labels
from prunekit.tracing.memory import Ledger
from prunekit.tracing.modules import OwnTensors, RunningModules
from prunekit.tracing.nodes import Alike
from prunekit.tracing.operations import Operation, OperationGraph
from prunekit.tracing.other_runs import Exports, flips, random_state, variants
from prunekit.tracing.values import comparable, tensors

SECONDS = 60.0
"""How long channels may be followed; what is not reached by then stays as it is."""


@dataclass(frozen=True)
class Followed:
    """What one forward told."""

    atoms: list[Alike]
    operations: list[Operation]
    shapes: list[tuple[int, ...]]
    """Of the outputs in evaluation mode."""
    ledger: Ledger
    """What was alive when."""
    residual: set[str]
    """Modules that add something to their own input and give a tensor of its shape."""
    uses: dict[tuple[str, str], set[str]]
    """The operators that took a module's own tensor, by the names of both."""
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
    forward asks for values it is run again with each of them flipped, and where layers were not
    come to also with other sizes; what these might need stays if values decide about it.
    """
    deadline = time.monotonic() + SECONDS
    modules = dict(model.named_modules())
    own, running = OwnTensors(modules), RunningModules(modules)
    labels = Labels(own, running, whole_heads=whole_heads)
    questions = ValueQuestions(own, running)
    graph, ledger = OperationGraph(own), Ledger(labels)
    flow = Flow(labels, deadline, (questions, graph, ledger))
    try:
        with _slow_attention(), torch.no_grad(), Exports(questions.tell), flow:
            before = random_state()
            out = call(model, example)
            drawn = before != random_state()
            flow.observers, places = (), list(questions.places)  # of the example's way alone
            others = _other_ways(flow, questions.asked, model, example, training_example)
        _refuse_nothing(example, out)
        ledger.keep(tensors(out))
        labels.finish(tensors([out, *others]))
        if drawn:
            everything = [labels.nodes.everything()]
            labels.freeze(everything, "the model's way depends on Python's chance")
        notes = _freeze_idle(labels, places)
    except ModelError:
        raise
    except Exception as error:
        cause = first_line(error, "no message")
        raise ModelError(
            f"cannot trace {type(model).__name__}: {type(error).__name__}: {cause}"
        ) from error
    finally:
        own.close()
        running.close()
        model.eval()
    shapes = [tuple(t.shape) for t in tensors(out)]
    atoms = labels.nodes.alike()
    return Followed(atoms, graph.operations, shapes, ledger, running.residual, own.uses, notes)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Attention as operators that are known, in evaluation mode too."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _other_ways(
    flow: Flow, asked: Sequence[bool], model: nn.Module, example: Any, training_example: Any
) -> list[Any]:
    """What the model gives with answers flipped, in training mode, and of other sizes."""
    outputs = []
    until = flow.deadline - 0.75 * SECONDS

    def run(example: Any) -> None:
        with suppress(Exception):  # a detector needs targets, for example
            outputs.append(call(model, example))

    for flipped in flips(asked):
        if time.monotonic() < until:
            with flipped:
                run(example)
    if training_example is not None:
        _training(model)
        run(training_example)
        model.eval()
    for other in variants(example) if flow.labels.idle() else []:
        if time.monotonic() < until:
            run(other)
    return outputs


def _freeze_idle(labels: Labels, places: Sequence[str]) -> tuple[str, ...]:
    """Keep what modules that did not run may need, if values decide on the way; notes on both."""
    idle, where = labels.idle(), ", ".join(places)
    for name in idle if places else []:
        reason = f"{name} did not run and may need it: the way of {where} depends on values"
        labels.freeze_what_fits(name, reason)
    return (
        *((f"its way may depend on values, in {where}",) if places else ()),
        *((f"no input tried came to {', '.join(idle)}: not cut, may fail",) if idle else ()),
    )


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
