"""One forward in which every tensor carries the identities of its channels.

A tensor's labels are a list of *parts*. A part is an int64 tensor of the same rank with size one on
every axis along which it is constant: the node (see :mod:`prunekit.tracing.nodes`) that each
position belongs to. Parts of one tensor vary along different axes; a tensor without parts holds
positions that stay as they are. Operators that only move data are applied to the labels as they
are; the others have a small function each in :mod:`prunekit.tracing.operators`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.networks.slimming import is_depthwise
from prunekit.support.errors import ModelError
from prunekit.tracing.calls import HANDLERS, Call, flat
from prunekit.tracing.memory import Ledger
from prunekit.tracing.nodes import Nodes, Slot

Part = Tensor
INNER_WIDTHS = ("attn_dim", "inner_dim", "all_head_size")
"""What modules call the number of heads times the width of one."""
HEAD_WIDTHS = ("head_dim", "dim_head", "head_size", "attention_head_size")
"""What they call the width of one."""
LARGEST = 4_000_000
"""Positions of a part that varies along several axes, above which its nodes are frozen instead."""
QUESTIONS = ("_local_scalar_dense", "is_nonzero", "equal")
"""Operators that hand a tensor's values to Python, where the way may depend on them."""
CHOICES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
"""Operators whose result's shape depends on values."""


@dataclass(eq=False)
class Operation:
    """One operator call, for what runs between layers: its name, layer and inputs."""

    name: str
    layer: str = ""
    inputs: list[Operation] = field(default_factory=list)
    outputs: list[Operation] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Split:
    """An axis of channels that was split into several: what is kept must stay a block."""

    part: Part
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    module: str


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows channels through everything that runs inside of it."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, deadline: float, *, whole_heads: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes = Nodes()
        self.whole_heads = whole_heads
        """Whether a head of an attention goes as a whole, or channels go from every head."""
        self.deadline = deadline
        self.operations: list[Operation] = []
        self.ledger: Ledger | None = Ledger()
        """Notes what is alive when; None once the forward in evaluation mode is over."""
        self.splits: list[Split] = []
        self.pieces: list[Part] = []
        """What goes together position by position, stacked; joined when the forward is over."""
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.late = False
        self._doing = ""
        self.residual: set[str] = set()
        """Modules that add something to their own input and give a tensor of its shape."""
        self.uses: dict[tuple[str, str], set[str]] = {}
        """The operators that took a module's own tensor, by the names of both."""
        self.asked: list[bool] = []
        """For every value that Python asked for whether it is a truth value."""
        self.values: dict[str, None] = {}
        """The modules, in words, in which Python or a shape got to know values of tensors."""
        self._stack: list[str] = []
        self._inputs: list[Tensor | None] = []
        self._adds: list[bool] = []
        self._labels: Any = WeakTensorKeyDictionary()
        self._computed: Any = WeakTensorKeyDictionary()
        self._made_by: Any = WeakTensorKeyDictionary()
        self._layer_of: Any = WeakTensorKeyDictionary()
        self._slots: dict[int, list[tuple[str, nn.Module, str]]] = {}
        self._hooks: list[Any] = []
        self._owned: list[Tensor] = []  # kept alive, as a freed tensor's id would come again
        for name, module in self.modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise ModelError(
                    f"{name or 'the model'} is a compiled {type(module).__name__}, whose channels "
                    "cannot be followed; use the nn.Module that it was made from"
                )
            own = {**module._parameters, **module._buffers}
            for attribute, tensor in own.items():
                if tensor is not None:
                    self._owned.append(tensor)
                    self._slots.setdefault(id(tensor), []).append((name, module, attribute))
        for name, module in self.modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._enter(name)))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
            if isinstance(module, ParametrizationList):
                self._hooks.append(module.register_forward_hook(self._compute(name)))

    def _enter(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any) -> None:
            self._stack.append(name)
            self._inputs.append(args[0] if args and isinstance(args[0], Tensor) else None)
            self._adds.append(False)

        return hook

    def _compute(self, name: str) -> Any:
        path, _, attribute = name.rpartition(".")
        owner = path.rpartition(".parametrizations")[0] if "." in path else ""

        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                self._computed[out] = [(owner, self.modules[owner], attribute)]

        return hook

    def _leave(self, _: nn.Module, __: Any, out: Any) -> None:
        name, given, adds = self._stack.pop(), self._inputs.pop(), self._adds.pop()
        both = [t for t in (given, out) if isinstance(t, Tensor)]
        shapes = [t.shape for t in both if not t.is_nested]
        if name and adds and len(shapes) == 2 and shapes[0] == shapes[1]:
            self.residual.add(name)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    @property
    def module(self) -> str:
        """The name of the innermost module that is running."""
        return self._stack[-1] if self._stack else ""

    @property
    def running(self) -> nn.Module:
        """The innermost module that is running."""
        return self.modules[self.module]

    @property
    def where(self) -> str:
        """The running module, in words."""
        if not self.module:
            return "the model"
        return f"{self.module} ({type(self.running).__name__})"

    @property
    def constant(self) -> str:
        """Why channels stay that meet something without channels in the running operator."""
        doing = self._doing.strip("_")
        return f"{doing} in {self.where} combines it with values that stay as they are"

    # --- labels -------------------------------------------------------------------------------

    def owners(self, tensor: Tensor) -> list[tuple[str, nn.Module, str]]:
        """Module name, module and attribute of a parameter or buffer, under all its names.

        What a parametrisation computes counts as the parameter that it stands for.
        """
        return self._slots.get(id(tensor)) or self._computed.get(tensor, [])

    def parts(self, tensor: Any) -> list[Part]:
        """The labels of ``tensor``."""
        if not isinstance(tensor, Tensor):
            return []
        if self.owners(tensor):
            axes = (self.axis_nodes(tensor, axis) for axis in range(tensor.ndim))
            return [along(ids, axis, tensor.ndim) for axis, ids in enumerate(axes) if len(ids) > 1]
        found: list[Part] = self._labels.get(tensor, [])
        return found

    def axis_nodes(self, tensor: Tensor, axis: int) -> Tensor:
        """The nodes of one axis of a parameter or buffer."""
        size = tensor.shape[axis]
        if size == 1:
            return torch.zeros(1, dtype=torch.int64)
        names = self.owners(tensor)
        ids = [self.nodes.of(slot_of(*owner, axis), size) for owner in names]
        for other in ids[1:]:
            self.nodes.join(ids[0], other)
        return ids[0]

    def put(self, tensor: Any, parts: Sequence[Part]) -> None:
        """Label ``tensor``; parts that came to vary along the same axis are joined."""
        if isinstance(tensor, Tensor):
            self._labels[tensor] = self.combine(parts)

    def combine(self, parts: Iterable[Part]) -> list[Part]:
        """Parts along different axes: those that vary along the same are joined."""
        found: list[Part] = []
        for part in parts:
            part = self.squash(part)
            while axes := varying(part):
                other = next((p for p in found if set(axes) & set(varying(p))), None)
                if other is None:
                    found.append(part)
                    break
                found = [p for p in found if p is not other]
                part = self.joined(part, other)
        return found

    def joined(self, one: Part, other: Part) -> Part:
        """Both parts as one."""
        self.nodes.join(one, other)
        shape = torch.broadcast_shapes(one.shape, other.shape)  # type: ignore[no-untyped-call]
        return self.squash(one.expand(shape))

    def squash(self, part: Part) -> Part:
        """``part`` by its roots, of size one along each axis on which they are all the same."""
        for axis in range(part.ndim):
            if part.shape[axis] > 1 and part.stride(axis) == 0:
                part = part.narrow(axis, 0, 1)
        roots = self.nodes.roots(part.contiguous())
        for axis in range(roots.ndim):
            if roots.shape[axis] > 1 and bool((roots == roots.narrow(axis, 0, 1)).all()):
                roots = roots.narrow(axis, 0, 1)
        return roots.contiguous()

    def collapse(self, part: Part, axes: Iterable[int]) -> Part:
        """Join what differs along ``axes`` only."""
        for axis in axes:
            if part.shape[axis] > 1:
                self.nodes.join(part, part.narrow(axis, 0, 1))
                part = part.narrow(axis, 0, 1)
        return self.squash(part)

    def freeze(self, parts: Iterable[Part], reason: str) -> None:
        """Whatever these parts belong to stays."""
        for part in parts:
            self.nodes.freeze(part, reason)

    def expanded(self, part: Part, tensor: Tensor) -> Tensor | None:
        """``part`` in the shape of ``tensor``, without copying; None (frozen) if far too large."""
        if len(varying(part)) > 1 and part.numel() > LARGEST:
            self.freeze([part], "its channels are spread over too many positions to follow")
            return None
        return part.expand(tensor.shape)

    # --- when the forward is over -------------------------------------------------------------

    def finish(self, outputs: Iterable[Tensor]) -> None:
        """The model's outputs stay; what was split into several axes is kept in whole blocks."""
        for tensor in outputs:
            self.freeze(self.parts(tensor), "it is the model's output")
        for part in self.pieces:
            self.collapse(part, [0])
        for split in self.splits:
            part = self.squash(split.part)
            while len(axes := varying(part)) > 1:
                part = self.collapse(part, axes[:1])
            if axes:
                self._count(split, part, axes[0])

    def tie_number(self, ids: Tensor) -> None:
        """Let numbers that the running module keeps, and that count these channels, go with them.

        Code such as ``x.split(self.hidden, dim=1)`` needs them to shrink with the channels.
        """
        for name, held in vars(self.running).items():
            if type(held) is int and held == len(ids) > 1:
                self.nodes.join(self.nodes.of((self.module, f"#{name}"), held), ids)

    def _count(self, split: Split, part: Part, axis: int) -> None:
        """Tie a module's own numbers to what goes: its heads, or the channels of each."""
        size, ids, last = part.shape[axis], part.flatten(), axis == split.axes[-1]
        before = split.shape[axis - 1] if last else 1
        after = math.prod(split.shape[a] for a in split.axes if a > axis)
        inner = before * size * after
        for name, value in vars(self.modules[split.module]).items():
            if type(value) is not int:
                continue
            heads = "head" in name and "dim" not in name
            if value == size and (name in HEAD_WIDTHS if last else heads):
                self.nodes.join(self.nodes.of((split.module, f"#{name}"), size), ids)
            elif value == inner and name in INNER_WIDTHS:
                own = self.nodes.of((split.module, f"#{name}"), inner).view(before, size, after)
                self.nodes.join(own, ids[:, None])

    # --- running ------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            name = func.name()  # type: ignore[no-untyped-call]
            raise ModelError(
                f"{self.where} uses torch's {name}, which cannot be followed; "
                "write it with plain Python or torch.where"
            )
        out = func(*args, **kwargs)
        call = Call(func, tuple(args), dict(kwargs), out)
        if any(tensor.is_nested for tensor in call.tensors):
            raise ModelError(f"{self.where} uses nested tensors, which cannot be followed")
        self._ask(call)
        self._remember(call)
        given = [t for t in call.tensors if self._labels.get(t) or self.owners(t)]
        for tensor in given:
            for name, _, attribute in self.owners(tensor):
                self.uses.setdefault((name, attribute), set()).add(call.name)
        if given:
            self._follow(call, given)
        if self.ledger is not None:
            self.ledger.note(self, call)
        return out

    def _ask(self, call: Call) -> None:
        """Note where the way may depend on values, other than those that the module keeps."""
        name = call.name
        if name in QUESTIONS:
            self.asked.append(type(call.out) is bool)
        elif name == "index":
            if all(i is None or i.dtype != torch.bool for i in call["indices"]):
                return
        elif name not in CHOICES:
            return
        if not all(self.owners(tensor) for tensor in call.tensors):
            self.tell()

    def tell(self) -> None:
        """The running module gets to know values, on which its way may depend."""
        self.values[self.where] = None

    def idle(self) -> list[str]:
        """Modules with parameters, of more than one value, none of which was read."""
        read = {*self.nodes.modules(), *(name for name, _ in self.uses)}
        return [
            name
            for name, module in self.modules.items()
            if name not in read
            and any(p is not None and p.numel() > 1 for p in module._parameters.values())
        ]

    def freeze_what_fits(self, name: str, reason: str) -> None:
        """Channels that this module, which did not run, could read or write: as many as it has."""
        module = self.modules[name]
        convolves = isinstance(module, nn.modules.conv._ConvNd)
        for tensor in module._parameters.values():
            shape = () if tensor is None else tensor.shape[:2] if convolves else tensor.shape
            for size in {*shape} - {1}:
                self.nodes.freeze(self.nodes.of_size(size), reason)

    def _follow(self, call: Call, given: Sequence[Tensor]) -> None:
        if call.name in ("add", "add_") and self._stack:
            self._adds[-1] |= any(tensor is self._inputs[-1] for tensor in call.tensors)
        self.late = self.late or time.monotonic() > self.deadline
        self._doing = call.name
        plain = call.name
        if plain.endswith("_") and not plain.startswith("_"):
            plain = plain[:-1]
        handler = HANDLERS.get(plain) if call.func.namespace == "aten" else None
        if handler is not None and not self.late:
            handler(self, call)
            return
        operator = f"{call.func.namespace}.{call.name} in {self.where}"
        reason = f"what {operator} does to channels is not known"
        if self.late:
            reason = "following its channels took too long"
        for tensor in given:
            self.freeze(self.parts(tensor), reason)

    def _remember(self, call: Call) -> None:
        """Add to the graph of operations."""
        before: list[Operation] = []
        layer, data = "", False
        for tensor in call.tensors:
            found = self._layer_of.get(tensor, "")
            for name, module, _ in self.owners(tensor):
                if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                    found = name
            layer = layer or found
            data = data or not found
            maker = self._made_by.get(tensor)
            if maker is not None and maker not in before:
                before.append(maker)
        if layer and not data:  # a layer's weight is only turned
            for tensor in flat(call.out):
                self._layer_of[tensor] = layer
            return
        operation = Operation(call.name, layer, before)
        for maker in before:
            maker.outputs.append(operation)
        self.operations.append(operation)
        for tensor in flat(call.out):
            self._made_by[tensor] = operation


def slot_of(name: str, module: nn.Module, attribute: str, axis: int) -> Slot:
    """Where one axis of a module's own tensor counts."""
    if isinstance(module, nn.Linear) and attribute in ("weight", "bias"):
        return name, ("out", "in")[axis]
    if isinstance(module, nn.modules.conv._ConvNd) and attribute in ("weight", "bias"):
        written = 1 if module.transposed and attribute == "weight" else 0
        if is_depthwise(module) and axis == 0:
            return name, "both"
        if module.groups == 1 and axis < 2:
            return name, "out" if axis == written else "in"
        if axis == 0 and not module.transposed:
            return name, "out"
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)
    if axis == 0 and isinstance(module, norms):
        return name, "both"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return name, "both"
    return name, f"{attribute}.{axis}"


def along(ids: Tensor, axis: int, rank: int) -> Part:
    """A part that has ``ids`` along one axis."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.view(shape)


def varying(part: Part) -> tuple[int, ...]:
    """The axes along which a squashed part is not constant."""
    return tuple(axis for axis, size in enumerate(part.shape) if size > 1)


def lift(part: Part, rank: int) -> Part:
    """A part of a tensor that is broadcast to ``rank`` axes."""
    return part.reshape([1] * (rank - part.ndim) + list(part.shape))
