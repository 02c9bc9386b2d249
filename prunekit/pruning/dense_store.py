"""A dense network at rest, and smaller ones cut from it that one optimizer trains in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.networks.slimming import WHOLE, Kept, kept, named_tensors, slim
from prunekit.support.errors import UsageError
from prunekit.train.method_state import OptimizerState
from prunekit.train.step import scale_gradients_


@dataclass(frozen=True)
class Network:
    """A physically narrow copy of the dense network, and where its elements belong there."""

    module: nn.Module
    plan: ChannelPlan
    parts: dict[str, Kept]
    work: float
    """Of a training step, in steps of the dense network, by MACs."""

    def part(self, name: str) -> Kept:
        """The elements of the dense tensor ``name`` that this network has."""
        return self.parts.get(name, WHOLE)


class Store:
    """Holds all parameters, buffers and optimizer state in the dense network's shapes.

    Elements of networks that are open are stale here until they are written back.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.model = model
        self.state: OptimizerState = {}
        self.optimizer: Optimizer | None = None
        self.graph = graph
        self._dense_macs = graph.macs({})
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
        work = self.graph.macs(plan.widths) / self._dense_macs
        return Network(slim(self.model, plan), plan, parts, work)

    def write(self, network: Network) -> None:
        """Take the values of ``network`` back."""
        dense = tensors(self.model)
        for name, tensor in tensors(network.module).items():
            network.part(name).put_(dense[name], tensor.detach())

    # --- the optimizer ------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Remember which slot of ``optimizer`` belongs to which of the dense parameters."""
        names = {id(tensor): name for name, tensor in self.model.named_parameters()}
        self.optimizer = optimizer
        self._slots = [
            [names.get(id(tensor), tensor) for tensor in group["params"]]
            for group in optimizer.param_groups
        ]
        if not any(isinstance(slot, str) for slots in self._slots for slot in slots):
            raise UsageError(
                "the optimizer has none of the model's parameters; "
                "make it from the parameters of the model that IEE was given"
            )

    def adopt_state(self, network: Network) -> OptimizerState:
        """The part for ``network`` of a state that the optimizer came with.

        It has the dense network's shapes (trained before) or those of ``network`` (resumed).
        """
        if self.optimizer is None:
            return {}
        dense = dict(self.model.named_parameters())
        small = dict(network.module.named_parameters())
        state = {
            name: dict(self.optimizer.state[parameter])
            for name, parameter in dense.items()
            if parameter in self.optimizer.state
        }
        if all(
            value.shape in ((), small[name].shape)
            for name, entry in state.items()
            for value in entry.values()
            if isinstance(value, Tensor)
        ):
            return state
        self.state = state
        return self.state_for(network)

    def give_to_optimizer(self, network: Network, state: OptimizerState) -> None:
        """Let the optimizer train ``network``, going on from ``state``."""
        if self.optimizer is None:
            return
        live = dict(network.module.named_parameters())
        optimizer = self.optimizer
        for group, slots in zip(optimizer.param_groups, self._slots, strict=True):
            for slot, old in zip(slots, group["params"], strict=True):
                if isinstance(slot, str):
                    optimizer.state.pop(old, None)
            group["params"] = [live[s] if isinstance(s, str) else s for s in slots]
        for name, entry in state.items():
            optimizer.state[live[name]] = entry

    def take_state(self, network: Network) -> OptimizerState:
        """The optimizer's state of ``network``, which it is training."""
        if self.optimizer is None:
            return {}
        state = self.optimizer.state
        return {n: dict(state[p]) for n, p in network.module.named_parameters() if p in state}

    def state_for(self, network: Network) -> OptimizerState:
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

    def write_state(self, network: Network, state: OptimizerState) -> None:
        """Take the optimizer's state of ``network`` back."""
        dense = dict(self.model.named_parameters())
        small = dict(network.module.named_parameters())
        for name, entry in state.items():
            whole = self.state.setdefault(name, {})
            for key, value in entry.items():
                if not isinstance(value, Tensor) or value.ndim == 0:
                    whole[key] = value.clone() if isinstance(value, Tensor) else value
                    continue
                if value.shape != small[name].shape:
                    raise UsageError(
                        f"the optimizer's {key} for {name} is {list(value.shape)}, the parameter "
                        f"{list(small[name].shape)}; IEE needs an optimizer with one number per "
                        "weight, such as SGD or AdamW"
                    )
                if not isinstance(whole.get(key), Tensor):
                    whole[key] = torch.zeros_like(dense[name], dtype=value.dtype)
                network.part(name).put_(whole[key], value)


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
        scale_gradients_(self._parameters, self._free)

    @torch.no_grad()
    def put_back_(self) -> None:
        """Undo what weight decay and momentum did to frozen elements, bit by bit."""
        # x * 0 + value on frozen elements, x * 1 + 0 on the others
        torch._foreach_mul_(self._parameters, self._free)
        torch._foreach_add_(self._parameters, self._values)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as they are, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
