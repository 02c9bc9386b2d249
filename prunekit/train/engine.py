"""A training put together: model, optimizer and devices, before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from prunekit.support.errors import ModelError, UsageError
from prunekit.support.processes import leave_group_at_exit
from prunekit.tasks import Task
from prunekit.train.batches import epoch_batches, size
from prunekit.train.config import TrainConfig
from prunekit.train.data import Data
from prunekit.train.ema import Ema
from prunekit.train.evaluating import resolve_device
from prunekit.train.rule import NoRule, Rule

__all__ = ["Position", "Run", "parameter_groups", "prepare"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass
class Position:
    """Where a training stands."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    score: float = 0.0
    best: float = 0.0


class _Net(nn.Module):
    """A shell whose forward accelerate patches for mixed precision, so that the model's is not."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.net(*inputs, **named)


@dataclass
class Run:
    """One call of :func:`fit`, put together."""

    model: nn.Module
    data: Data
    task: Task
    config: TrainConfig
    accelerator: Accelerator
    optimizer: Optimizer
    rule: Rule
    ema: Ema | None
    teacher: nn.Module | None
    per_epoch: int
    shell: nn.Module
    stepper: Any  # accelerate's wrapper of the optimizer
    layout: torch.memory_format | None = None
    """Of batches of images, once the first has come."""

    @property
    def network(self) -> nn.Module:
        """What the next step trains."""
        return self.rule.training_network(self.model)

    @property
    def result(self) -> nn.Module:
        """What is validated, and what the training ends with."""
        return self.rule.inference_network(self.model)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """The number of this process."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many processes train together."""
        return int(self.accelerator.num_processes)


def prepare(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    teacher: nn.Module | None,
    rule: Rule | None,
) -> Run:
    """The training of ``model``, moved to its device; UsageError if the batch cannot be shared."""
    accelerator = _accelerator(config)
    world = accelerator.num_processes
    if world > 1:
        leave_group_at_exit()
    if config.batch_size % world or config.batch_size < 2 * world:
        raise UsageError(
            f"`batch_size` {config.batch_size} cannot be shared by {world} processes; "
            f"use a multiple of {world} of at least {2 * world}"
        )
    per_epoch = len(epoch_batches(size(data.train), config.batch_size, 0, 0, world=world))
    model.to(accelerator.device).train()
    optimizer = _optimizer(model, config)
    shell, stepper = accelerator.prepare(_Net(model), optimizer)
    rule = NoRule() if rule is None else rule
    rule.begin(model, optimizer)
    if config.ema and rule.inference_network(model) is not model:
        raise UsageError(
            "`ema` averages one network, and this rule trains several in turn; set it to 0"
        )
    return Run(
        model=model,
        data=data,
        task=data.task.smoothed(config.label_smoothing),
        config=config,
        accelerator=accelerator,
        optimizer=optimizer,
        rule=rule,
        # After prepare, which gives every process the same weights.
        ema=Ema(model, config.ema) if config.ema else None,
        teacher=teacher,
        per_epoch=per_epoch,
        shell=shell,
        stepper=stepper,
    )


def _accelerator(config: TrainConfig) -> Accelerator:
    device = resolve_device(config.device)
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise UsageError("`mixed_precision` fp16 needs a GPU; use bf16 or no")
    state = {**PartialState._shared_state, **AcceleratorState._shared_state}
    if state and (
        state["device"].type != device.type
        or state.get("_mixed_precision", config.mixed_precision) != config.mixed_precision
    ):
        # accelerate keeps one state per process and would refuse another precision or device.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=config.mixed_precision)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters: those with ``weight_decay``; biases and norms without."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            plain = isinstance(module, _NORMS) or name == "bias" or parameter.ndim < 2
            (free if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    groups = parameter_groups(model, config.weight_decay)
    if not groups:
        raise ModelError("the model has no trainable parameters; set requires_grad on some")
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.base_lr)
    momentum = float(config.momentum)
    return SGD(groups, lr=config.base_lr, momentum=momentum, nesterov=momentum > 0)
