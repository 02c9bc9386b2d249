"""A dense network at rest, and smaller ones cut from it that one optimizer trains in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.core.plan import ChannelPlan
from prunekit.networks.slimming import WHOLE, Kept, kept, named_tensors, slim
from prunekit.support.errors import UsageError
from prunekit.train.method_state import State


@dataclass(frozen=True)
class Network:
    """A physically narrow copy of the dense network, and where its elements belong there."""

    module: nn.Module
    plan: ChannelPlan
    parts: dict[str, Kept]

    def part(self, name: str) -> Kept:
        """The elements of the dense tensor ``name`` that this network has."""
        return self.parts.get(name, WHOLE)


class Store:
    """Holds all parameters, buffers and optimizer state in the dense network's shapes.

    Elements of networks that are open are stale here until they are written back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state: State = {}
        self._optimizer: Optimizer | None = None
        self._slots: list[list[str | Tensor]] = []

    # --- values -------------------------------------------------------------------------------

    def open(self, plan: ChannelPlan) -> Network:
        """Cut the network that ``plan`` keeps, with the values held here."""
        parts = kept(self.model, plan)
        foreign = sorted(parts.keys() - dict(named_tensors(self.model)).keys())
        if foreign:
            raise UsageError(
                f"{foreign[0]} is computed by a parametrisation, which IEE cannot take apart; "
                "remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        return Network(slim(self.model, plan), plan, parts)

    def write(self, network: Network) -> None:
        """Take the values of ``network`` back."""
        held = tensors(self.model)
        for name, tensor in tensors(network.module).items():
            network.part(name).put_(held[name], tensor.detach())

    # --- the optimizer ------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Remember which slot of ``optimizer`` belongs to which of the dense parameters."""
        names = {id(tensor): name for name, tensor in self.model.named_parameters()}
        self._optimizer = optimizer
        self._slots = [
            [names.get(id(tensor), tensor) for tensor in group["params"]]
            for group in optimizer.param_groups
        ]
        if not any(isinstance(slot, str) for slots in self._slots for slot in slots):
            raise UsageError(
                "the optimizer has none of the model's parameters; "
                "make it from the parameters of the model that IEE was given"
            )

    def gathered(self, network: Network) -> State:
        """The part for ``network`` of a state that the optimizer came with.

        It has the dense network's shapes (trained before) or those of ``network`` (resumed).
        """
        if self._optimizer is None:
            return {}
        dense = dict(self.model.named_parameters())
        small = dict(network.module.named_parameters())
        found = {
            n: self._optimizer.state[p] for n, p in dense.items() if p in self._optimizer.state
        }
        if any(
            value.shape not in ((), small[name].shape)
            for name, entry in found.items()
            for value in entry.values()
            if isinstance(value, Tensor)
        ):
            self.state = {name: dict(entry) for name, entry in found.items()}
            return self.state_for(network)
        return {name: dict(entry) for name, entry in found.items()}

    def lend(self, network: Network, state: State) -> None:
        """Let the optimizer train ``network``, going on from ``state``."""
        if self._optimizer is None:
            return
        live = dict(network.module.named_parameters())
        optimizer = self._optimizer
        for group, slots in zip(optimizer.param_groups, self._slots, strict=True):
            for slot, old in zip(slots, group["params"], strict=True):
                if isinstance(slot, str):
                    optimizer.state.pop(old, None)
            group["params"] = [live[s] if isinstance(s, str) else s for s in slots]
        for name, found in state.items():
            optimizer.state[live[name]] = found

    def lent(self, network: Network) -> State:
        """The optimizer's state of ``network``, which it is training."""
        if self._optimizer is None:
            return {}
        state = self._optimizer.state
        return {n: dict(state[p]) for n, p in network.module.named_parameters() if p in state}

    def state_for(self, network: Network) -> State:
        """The part of the state held here that concerns ``network``, copied."""
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        return {
            name: {
                key: network.part(name).take(value)
                if isinstance(value, Tensor) and value.shape == shapes[name]
                else (value.clone() if isinstance(value, Tensor) else value)
                for key, value in entry.items()
            }
            for name, entry in self.state.items()
        }

    def write_state(self, network: Network, state: State) -> None:
        """Take the optimizer's state of ``network`` back."""
        dense = dict(self.model.named_parameters())
        small = dict(network.module.named_parameters())
        for name, entry in state.items():
            held = self.state.setdefault(name, {})
            for key, value in entry.items():
                if not isinstance(value, Tensor) or value.ndim == 0:
                    held[key] = value.clone() if isinstance(value, Tensor) else value
                    continue
                if value.shape != small[name].shape:
                    raise UsageError(
                        f"the optimizer's {key} for {name} is {list(value.shape)}, the parameter "
                        f"{list(small[name].shape)}; IEE needs an optimizer with one number per "
                        "weight, such as SGD or AdamW"
                    )
                if not isinstance(held.get(key), Tensor):
                    held[key] = torch.zeros_like(dense[name], dtype=value.dtype)
                network.part(name).put_(held[key], value)


class Frozen:
    """Holds the elements of ``small`` fixed while ``wide``, which contains them, is trained."""

    @torch.no_grad()
    def __init__(self, small: Network, wide: Network) -> None:
        live = dict(small.module.named_parameters())
        self._parameters: list[Tensor] = []
        self._free: list[Tensor] = []
        self._values: list[Tensor] = []
        for name, parameter in wide.module.named_parameters():
            part = small.part(name).within(wide.part(name))
            free, value = torch.ones_like(parameter), torch.zeros_like(parameter)
            part.put_(free, torch.zeros_like(live[name]))
            part.put_(value, live[name])
            self._parameters.append(parameter)
            self._free.append(free)
            self._values.append(value)

    def clear_gradients_(self) -> None:
        """Zero the gradients of frozen elements, so that clipping does not count them."""
        pairs = [
            (p.grad, free)
            for p, free in zip(self._parameters, self._free, strict=True)
            if p.grad is not None
        ]
        if pairs:  # not so where the loss reads none of them
            torch._foreach_mul_([g for g, _ in pairs], [f for _, f in pairs])

    @torch.no_grad()
    def put_back_(self) -> None:
        """Undo what weight decay and momentum did to frozen elements, bit by bit."""
        # x * 0 + value on frozen elements, x * 1 + 0 on the others
        torch._foreach_mul_(self._parameters, self._free)
        torch._foreach_add_(self._parameters, self._values)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as they are, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
