"""A model's modules while a forward runs: which one is running, and whose own each tensor is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.support.errors import ModelError
from prunekit.tracing.calls import Call


class Owner(NamedTuple):
    """A module that has a tensor of its own, and the attribute it has it as."""

    name: str
    module: nn.Module
    attribute: str


class OwnTensors:
    """Parameters and buffers by the modules that have them, and the operators that took them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.uses: dict[tuple[str, str], set[str]] = {}
        """The operators that took a module's own tensor, by the names of both."""
        self._by_id: dict[int, list[Owner]] = {}
        self._computed: Any = WeakTensorKeyDictionary()
        self._alive: list[Tensor] = []  # a freed tensor's id would come again
        self._hooks: list[Any] = []
        for name, module in modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise ModelError(
                    f"{name or 'the model'} is a compiled {type(module).__name__}, whose channels "
                    "cannot be followed; use the nn.Module that it was made from"
                )
            for attribute, tensor in {**module._parameters, **module._buffers}.items():
                if tensor is not None:
                    self._alive.append(tensor)
                    self._by_id.setdefault(id(tensor), []).append(Owner(name, module, attribute))
        for name, module in modules.items():
            if isinstance(module, ParametrizationList):
                path, _, attribute = name.rpartition(".")
                owner = path.rpartition(".parametrizations")[0] if "." in path else ""
                hook = self._computes(Owner(owner, modules[owner], attribute))
                self._hooks.append(module.register_forward_hook(hook))

    def _computes(self, owner: Owner) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                self._computed[out] = [owner]

        return hook

    def owners(self, tensor: Tensor) -> list[Owner]:
        """Who has this parameter or buffer, under all its names; none of any other tensor.

        What a parametrisation computes counts as the parameter that it stands for.
        """
        return self._by_id.get(id(tensor)) or self._computed.get(tensor, [])

    def note_uses(self, call: Call) -> None:
        """Remember which of these tensors an operator took."""
        for tensor in call.tensors:
            for owner in self.owners(tensor):
                self.uses.setdefault((owner.name, owner.attribute), set()).add(call.name)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()


@dataclass(eq=False)
class _Running:
    """A call of a module that is not over."""

    name: str
    given: Tensor | None
    adds_to_input: bool = False


class RunningModules:
    """The modules that are running, innermost last, and those that turned out residual."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.residual: set[str] = set()
        """Modules that add something to their own input and give a tensor of its shape."""
        self._stack: list[_Running] = []
        self._hooks: list[Any] = []
        for name, module in modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._enters(name)))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def _enters(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any) -> None:
            given = args[0] if args and isinstance(args[0], Tensor) else None
            self._stack.append(_Running(name, given))

        return hook

    def _leave(self, _: nn.Module, __: Any, out: Any) -> None:
        running = self._stack.pop()
        both = [t for t in (running.given, out) if isinstance(t, Tensor)]
        shapes = [t.shape for t in both if not t.is_nested]
        same = len(shapes) == 2 and shapes[0] == shapes[1]
        if running.name and running.adds_to_input and same:
            self.residual.add(running.name)

    def note_sum(self, call: Call) -> None:
        """Remember whether the innermost module adds to its own input."""
        if call.name in ("add", "add_") and self._stack:
            running = self._stack[-1]
            running.adds_to_input |= any(tensor is running.given for tensor in call.tensors)

    @property
    def name(self) -> str:
        """The name of the innermost module that is running."""
        return self._stack[-1].name if self._stack else ""

    @property
    def module(self) -> nn.Module:
        """The innermost module that is running."""
        return self.modules[self.name]

    @property
    def where(self) -> str:
        """The innermost module that is running, in words."""
        if not self.name:
            return "the model"
        return f"{self.name} ({type(self.module).__name__})"

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
