"""The networks of an IEE training: the slim one, the wide one around it, and what they hand on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan, Cut
from prunekit.networks.masking import zero_
from prunekit.networks.slimming import cut_axes
from prunekit.pruning.dense_store import Frozen, Network, Store, tensors
from prunekit.pruning.forms import PlanForm
from prunekit.pruning.iee_schedule import IEESchedule
from prunekit.support.errors import UsageError
from prunekit.support.processes import average_
from prunekit.train.method_state import (
    ByParameter,
    Forms,
    Named,
    OptimizerState,
    Saved,
    read,
    write,
)

STORE_FORMS: Forms = {"state": ByParameter("state")}
OWN_FORMS: Forms = {"slim_state": ByParameter("small_state"), "recent": Named("mru")}


class Networks:
    """Opens networks, cut from a dense store, and has the optimizer train one of them in turn."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, schedule: IEESchedule) -> None:
        self.store = Store(model, graph)
        self.schedule = schedule
        self.slim: Network | None = None
        """The active structure, once it is opened."""
        self.wide: Network | None = None
        """With the inactive channels that are back; None unless exploring."""
        self.frozen: Frozen | None = None
        """The active structure inside of the wide one."""
        self.slim_state: OptimizerState = {}
        """The optimizer's state of the active structure, put by while exploring."""
        self.recent: dict[str, Tensor] = {}
        """The most recently used values of the dense network, where they are asked for."""
        self._modes: dict[nn.Module, bool] = {}
        """Of norms that use their running statistics while exploring, as they were."""

    def opened(self, plan: ChannelPlan) -> Network:
        """The active structure, cut on first use."""
        if self.slim is None:
            self.slim = self.store.open(plan)
        return self.slim

    def both(self) -> tuple[Network, Network]:
        """The slim and the wide network of an exploration."""
        if self.slim is None or self.wide is None:
            raise UsageError("nothing is being explored")
        return self.slim, self.wide

    def attach(self, network: Network) -> None:
        """Have the optimizer, which trained the dense network or ``network``, train ``network``."""
        self.store.give_to_optimizer(network, self.store.adopt_state(network))

    # --- pruning and growing ------------------------------------------------------------------

    def put_away(self, slim: Network) -> None:
        """Write the active structure's values and optimizer state back."""
        self._put_away(slim, self.store.take_state(slim))

    def exchange(self, old: Network, plan: ChannelPlan) -> None:
        """Train the structure ``plan`` from now on, with modules in the modes of ``old``."""
        self.slim = _like(old, self.store.open(plan))
        self.store.give_to_optimizer(self.slim, self.store.state_for(self.slim))
        self.slim_state = {}

    def change_grown(self, slim: Network, plan: ChannelPlan) -> None:
        """What channels grown into ``plan`` start from, where that is not what they explored."""
        if self.schedule.growth == "explored":
            return
        if self.schedule.growth == "mru":
            grown = self.store.open(plan)
            for name, tensor in tensors(self.store.model).items():
                part, active = grown.part(name), slim.part(name)
                trained = active.take(tensor)
                part.put_(tensor.data, part.take(self.recent[name]))
                active.put_(tensor.data, trained)
            return
        modules = dict(self.store.model.named_modules())
        for name, cut in slim.plan.cuts.items():
            back = Cut(in_=tuple(sorted({*cut.in_} - {*plan.cuts.get(name, Cut()).in_})))
            zero_(modules[name], cut_axes(modules[name], back, name))

    def _put_away(self, slim: Network, state: OptimizerState) -> None:
        _agree(slim)
        self.store.write(slim)
        self.store.write_state(slim, state)
        if "mru" in (self.schedule.source, self.schedule.growth):
            if not self.recent:
                dense = tensors(self.store.model)
                self.recent = {name: t.detach().clone() for name, t in dense.items()}
            for name, tensor in tensors(slim.module).items():
                slim.part(name).put_(self.recent[name], tensor.detach())

    # --- exploring ----------------------------------------------------------------------------

    def explore(self, slim: Network, plan: ChannelPlan) -> None:
        """Train the wide network ``plan``, which contains ``slim``, from now on."""
        self.slim_state = self.store.take_state(slim)
        self._put_away(slim, self.slim_state)
        if self.schedule.source == "mru":
            for name, tensor in tensors(self.store.model).items():
                tensor.data.copy_(self.recent[name])
        wide = self._open_wide(slim, plan)
        fresh = self.schedule.momentum == "zero"
        self.store.give_to_optimizer(wide, {} if fresh else self.store.state_for(wide))

    def _open_wide(self, slim: Network, plan: ChannelPlan) -> Network:
        self.wide = wide = _like(slim, self.store.open(plan))
        if self.schedule.norm == "running":
            for module in wide.module.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    self._modes[module] = module.training
                    module.eval()
        if self.schedule.freeze:
            self.frozen = Frozen(slim, wide)
        return wide

    def take_back(self) -> None:
        """Write both networks back: the explored values, and the frozen structure as it was."""
        slim, wide = self.both()
        state = self.store.take_state(wide)
        momentum_kept = self.schedule.momentum == "kept"
        _agree(wide)
        self.store.write(wide)
        if momentum_kept:
            self.store.write_state(wide, state)
        else:
            self.store.state = {}
        if self.schedule.freeze:
            self.store.write(slim)
        if self.schedule.freeze or not momentum_kept:
            self.store.write_state(slim, self.slim_state)
        self.wide = self.frozen = None

    def restore_modes(self) -> None:
        """Norms of the wide network train again as they did before it explored."""
        for module, mode in self._modes.items():
            module.training = mode
        self._modes = {}

    # --- going on after a restart -------------------------------------------------------------

    def write(self, saved: Saved, slim: Network) -> None:
        """Add the values of the open networks, and what is put by, to ``saved``."""
        Named("small").write(tensors(slim.module), saved)
        explored = None if self.wide is None else self.wide.plan
        PlanForm("wide", self.store.graph).write(explored, saved)
        if self.wide is not None:
            Named("wide").write(tensors(self.wide.module), saved)
        write(self, saved, OWN_FORMS)
        write(self.store, saved, STORE_FORMS)

    def read(self, saved: Saved, old: Network, plan: ChannelPlan) -> None:
        """Open the networks that :meth:`write` saved; ``old`` is the slim one until now."""
        read(self, saved, OWN_FORMS)
        read(self.store, saved, STORE_FORMS)
        self.slim = _filled(_like(old, self.store.open(plan)), Named("small").read(saved))
        self.wide = self.frozen = None
        self._modes = {}
        explored = PlanForm("wide", self.store.graph).read(saved)
        if explored is not None:
            _filled(self._open_wide(self.slim, explored), Named("wide").read(saved))
        # the optimizer's state is the caller's to load
        self.store.give_to_optimizer(self.wide or self.slim, {})


def _like(old: Network, new: Network) -> Network:
    """``new`` with every module in training or evaluation mode as in ``old``."""
    modules = dict(old.module.named_modules())
    for name, module in new.module.named_modules():
        module.training = modules[name].training
    return new


@torch.no_grad()
def _filled(network: Network, values: dict[str, Tensor]) -> Network:
    """``network`` with these values."""
    for name, tensor in tensors(network.module).items():
        tensor.data.copy_(values[name])
    return network


def _agree(network: Network) -> None:
    """Each process has normalised other batches; their running statistics become one."""
    average_([b for b in network.module.buffers() if b.is_floating_point()])
