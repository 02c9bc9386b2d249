"""Channel atoms: the sets of (module, axis, position) entries that can only go together.

They are found by union-find over the edges of torch-pruning's dependency graph, one channel at a
time, because a root channel of that graph is not always the smallest thing that can be removed.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex
from torch_pruning.ops import OPTYPE

from prunekit.errors import ModelError

Slot = tuple[str, str]
"""Module name and role (``out``, ``in`` or ``both``)."""

SECONDS = 60.0
"""How long channels may be followed; layers not reached by then stay as they are."""
LATE = f"its channels could not be followed within {SECONDS:.0f} s"
MAX_POSITIONS = 2_000_000
"""A mapping that yields more positions than this has exploded."""

_LAYERS = (OPTYPE.CONV, OPTYPE.LINEAR)
_PER_CHANNEL = (OPTYPE.BN, OPTYPE.PRELU, OPTYPE.DEPTHWISE_CONV)
_STATELESS = (
    OPTYPE.CONCAT,
    OPTYPE.SPLIT,
    OPTYPE.ELEMENTWISE,
    OPTYPE.RESHAPE,
    OPTYPE.UNBIND,
    OPTYPE.EXPAND,
    OPTYPE.SLICE,
    OPTYPE.OUTPUT,
)


@dataclass
class Atom:
    """Entries that go together: positions by slot, and why it must stay (empty: it may go)."""

    positions: dict[Slot, list[int]] = field(default_factory=dict)
    frozen: str = ""


@dataclass
class Dependencies:
    """What one traced forward told: the library's nodes, and the nodes whose output leaves."""

    graph: Any
    names: dict[Any, str]
    outputs: set[Any]


def dependencies(model: nn.Module, example: Any) -> Dependencies:
    """Run torch-pruning's tracer on ``model``, a copy that is not needed any more.

    Every parameter gets a gradient. A PReLU with one slope for all channels becomes a LeakyReLU:
    the tracer takes its single parameter for a single channel.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.PReLU) and child.num_parameters == 1:
                setattr(module, name, nn.LeakyReLU(float(child.weight.detach())))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    leaving: list[Any] = []

    def remember(out: Any) -> Any:
        found = [t for t in tensors(out) if t.grad_fn is not None]
        leaving.extend(t.grad_fn for t in found)
        return found

    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(model, example, output_transform=remember, verbose=False)
    except ModelError:
        raise
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise ModelError(
            f"cannot trace {type(model).__name__}: {type(error).__name__}: "
            f"{cause[0] if cause else 'no message'}"
        ) from error
    names = {module: name for name, module in model.named_modules()}
    outputs = {node for node in graph.module2node.values() if node.grad_fn in leaving}
    outputs |= {n for n in graph.module2node.values() if n.type == OPTYPE.OUTPUT}
    return Dependencies(graph, names, outputs)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a model's output: any nesting of sequences, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = list(vars(value).values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [t for item in value for t in tensors(item)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return []
    raise ModelError(
        f"the model returns a {type(value).__name__}, in which tensors cannot be followed; "
        "return a tensor, tuple, list, dict or dataclass"
    )


class _UnionFind:
    def __init__(self) -> None:
        self.parent: dict[tuple[int, str, int], tuple[int, str, int]] = {}

    def find(self, item: tuple[int, str, int]) -> tuple[int, str, int]:
        parent = self.parent
        root = item
        while (above := parent.setdefault(root, root)) != root:
            root = above
        while parent[item] != root:
            parent[item], item = root, parent[item]
        return root

    def union(self, a: tuple[int, str, int], b: tuple[int, str, int]) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[a] = b


def find_atoms(deps: Dependencies) -> list[Atom]:
    """All atoms that some convolution or linear layer writes."""
    graph = deps.graph
    nodes = list(graph.module2node.values())
    number = {id(node): i for i, node in enumerate(nodes)}
    sets = _UnionFind()
    frozen: dict[tuple[int, str, int], str] = {}
    deadline = time.monotonic() + SECONDS
    for node in nodes:
        if node.type not in _LAYERS and node.type != OPTYPE.DEPTHWISE_CONV:
            continue
        pruner = graph.get_pruner_of_module(node.module)
        size = pruner.get_out_channels(node.module)
        role = _role(graph, node, pruner.prune_out_channels)
        start = [(number[id(node)], role, i) for i in range(size)]
        for item in start:
            sets.find(item)
        finished = _walk(
            deps, node, pruner.prune_out_channels, start, number, sets, frozen, deadline
        )
        if not finished:
            frozen |= {item: frozen.get(item, LATE) for item in start}
    return _collect(deps, nodes, sets, frozen)


def _role(graph: Any, node: Any, function: Any) -> str:
    if node.type not in _LAYERS and node.type not in (OPTYPE.MHA, OPTYPE.EMBED, OPTYPE.LSTM):
        return "both"
    return "out" if graph.is_out_channel_pruning_fn(function) else "in"


def _walk(
    deps: Dependencies,
    node: Any,
    function: Any,
    start: Sequence[tuple[int, str, int]],
    number: dict[int, int],
    sets: _UnionFind,
    frozen: dict[tuple[int, str, int], str],
    deadline: float,
) -> bool:
    """Follow every channel of ``start`` through the graph, joining what it meets.

    False when time ran out, and not all of it was met.
    """
    graph = deps.graph
    stack = [(node, function, [_HybridIndex(idx=i, root_idx=i) for i in range(len(start))])]
    seen = set()
    while stack:
        if time.monotonic() > deadline:
            return False
        here, trigger, indices = stack.pop()
        mark = (number[id(here)], _role(graph, here, trigger), tuple(indices))
        if mark in seen:
            continue
        seen.add(mark)
        if reason := _stays(deps, here, mark[1]):
            for index in indices:
                frozen.setdefault(start[index.root_idx], reason)
        for dependency in here.dependencies:
            if not dependency.is_triggered_by(trigger):
                continue
            moved = list(indices)
            for mapping in dependency.index_mapping:
                if mapping is not None:
                    moved = mapping(moved)
            if len(moved) > MAX_POSITIONS:
                for index in indices:
                    frozen.setdefault(start[index.root_idx], "its channel indices explode")
                continue
            if not moved:
                continue
            target = number[id(dependency.target)]
            role = _role(graph, dependency.target, dependency.handler)
            for index in moved:
                sets.union(start[index.root_idx], (target, role, index.idx))
            stack.append((dependency.target, dependency.handler, moved))
    return True


def _stays(deps: Dependencies, node: Any, role: str) -> str:
    """Why channels that reach ``node`` on its ``role`` axis must stay, or an empty string."""
    name = deps.names.get(node.module, "")
    if node in deps.outputs and role != "in":
        return "it is the model's output"
    if node.type == OPTYPE.PARAMETER:
        return "a parameter outside any layer depends on it"
    if node.type == OPTYPE.CONV and node.module.groups > 1:
        return f"{name} is a grouped convolution"
    if node.type == OPTYPE.CONV and node.module.transposed:
        return f"{name} is a transposed convolution"
    if node.type == OPTYPE.DEPTHWISE_CONV and node.module.in_channels != node.module.out_channels:
        return f"{name} has a channel multiplier"
    if node.type in _LAYERS or node.type in _PER_CHANNEL or node.type in _STATELESS:
        return ""
    return f"{name} ({type(node.module).__name__}) is not supported yet"


def _collect(
    deps: Dependencies,
    nodes: list[Any],
    sets: _UnionFind,
    frozen: dict[tuple[int, str, int], str],
) -> list[Atom]:
    atoms: dict[tuple[int, str, int], Atom] = defaultdict(Atom)
    limits: dict[tuple[int, str], int] = {}
    beyond: dict[int, str] = {}
    for item in list(sets.parent):
        node_number, role, position = item
        node = nodes[node_number]
        atom = atoms[sets.find(item)]
        name = deps.names.get(node.module)
        if name is None or (node.type not in _LAYERS and node.type not in _PER_CHANNEL):
            continue
        key = (node_number, role)
        if key not in limits:
            limits[key] = _axis(node.module, role)
        if not 0 <= position < limits[key]:
            beyond[id(atom)] = f"its channels do not map one to one onto those of {name}"
            continue
        atom.positions.setdefault((name, role), []).append(position)
    for item, reason in frozen.items():
        atom = atoms[sets.find(item)]
        atom.frozen = atom.frozen or reason
    _spread(list(atoms.values()), beyond)
    return [atom for atom in atoms.values() if any(r != "in" for _, r in atom.positions)]


def _spread(atoms: Sequence[Atom], beyond: Mapping[int, str]) -> None:
    """Freeze, with an atom that was mapped beyond a layer's channels, all that its writers write.

    A reduction over channels looks like an elementwise operator: none of its mapping is right.
    """
    reasons: dict[Slot, str] = {}
    for atom in atoms:
        if id(atom) in beyond:
            for slot in atom.positions:
                if slot[1] != "in":
                    reasons.setdefault(slot, beyond[id(atom)])
    for atom in atoms:
        found = next((reasons[slot] for slot in atom.positions if slot in reasons), "")
        atom.frozen = atom.frozen or found or beyond.get(id(atom), "")


def _axis(module: nn.Module, role: str) -> int:
    """How many channels ``module`` has on an axis."""
    names = {
        "out": ("out_channels", "out_features"),
        "in": ("in_channels", "in_features"),
        "both": ("num_features", "out_channels", "num_parameters"),
    }[role]
    for name in names:
        if hasattr(module, name):
            return int(getattr(module, name))
    return 0
