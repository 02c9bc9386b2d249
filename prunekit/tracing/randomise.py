"""A copy of a model in which every channel matters: what a proof by comparing outputs needs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.networks.running import call
from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.tracing.other_runs import Exports, FlippedAnswers

CONSTANT = 1e-4
"""A parameter with a standard deviation below this has not been drawn at random."""


@torch.no_grad()
def randomised(
    model: nn.Module, example: Any, dtype: torch.dtype, seed: int, counter: FlippedAnswers
) -> nn.Module:
    """A randomised copy on the CPU, in evaluation mode.

    Statistics and scales of norms, biases and whatever else starts out constant become random,
    and every layer's output gets a standard deviation of one: with weights as they are drawn,
    signals fade out in deep networks, and with them what a wrong cut would change. ``counter`` is
    told of at least one value that the model asks for while it runs, if there is any.
    """
    working = copy.deepcopy(model).cpu().to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=dtype)

    for module in working.modules():
        mean, var = (getattr(module, f"running_{name}", None) for name in ("mean", "var"))
        own: list[Tensor] = [*module.parameters(recurse=False)]
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean.copy_(0.1 * noise(mean))
            var.copy_(0.75 + 0.1 * noise(var).abs())
            own += [b for n, b in module.named_buffers(recurse=False) if n in ("weight", "bias")]
        for tensor in own:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if tensor.numel() > 1 and float(tensor.std()) > CONSTANT:
                if tensor is getattr(module, "bias", None):
                    tensor.copy_(0.1 * noise(tensor))
                continue
            level = float(tensor.mean())
            if abs(level) > 1e-3:
                tensor.mul_(1 + 0.2 * noise(tensor))
            else:  # closed at first: a bias, or the scale of a residual branch
                start = 0.0 if tensor is getattr(module, "bias", None) else 0.5
                tensor.copy_(start + 0.1 * noise(tensor))
    try:
        _level_(working, example, counter)
    except Exception:  # what does not run is found elsewhere
        counter.asked.append(True)
    return working


def _level_(model: nn.Module, example: Any, counter: FlippedAnswers) -> None:
    """Bring the output of every layer to a standard deviation of one, at its first call."""
    levelled: set[nn.Module] = set()

    def level(layer: Any, _: Any, out: Tensor) -> Tensor:
        asked = len(counter.asked)
        scale = float(out.detach().std()) if out.numel() > 1 else 1.0
        del counter.asked[asked:]  # that was this function's own question
        plain = all(name in layer._parameters for name in ("weight", "bias"))
        if layer in levelled or not plain or not 1e-9 < scale < 1e9:
            return out
        levelled.add(layer)
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor.div_(scale)
        return out / scale

    layers = [module for module in model.modules() if isinstance(module, LAYER_TYPES)]
    hooks = [layer.register_forward_hook(level) for layer in layers]
    try:
        with Exports(lambda: counter.asked.append(True)), counter:
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
