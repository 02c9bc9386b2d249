"""Blocks that train with parallel branches, folded into the one layer that is deployed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunekit.networks.running import evaluating, refusing
from prunekit.networks.standardised import plain_convolution
from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.support.errors import ModelError

METHODS = ("reparameterize", "switch_to_deploy", "fuse_convs", "fuse")
"""How blocks offer it: timm's and Apple's, RepVGG's, ultralytics', and timm's RepViT's name."""

_MARK = "_prunekit_folded"
_DEPLOYED = ("reparam_conv", "rbr_reparam", "lkb_reparam")
"""Layers that only folded blocks have; some blocks fail when they are folded again."""


def reparameterize(model: nn.Module, example: Any = None) -> nn.Module:
    """A copy of ``model`` with its blocks of parallel branches folded, as they are deployed.

    These are blocks with a method ``reparameterize``, ``switch_to_deploy`` or ``fuse_convs``, and
    blocks of several layers whose ``fuse`` returns one layer. Convolutions that compute their
    weight in every forward, such as standardised ones, become plain ones with that weight.
    ``model`` is untouched; without such blocks it is returned itself, and so is a folded one.
    :func:`folded_blocks` names what was folded. Folding takes the norms' running statistics, so the
    network is to be trained before; the folded parameters can be trained where the branches could.

    With an ``example`` (a tensor, a tuple of inputs or a dict of keyword inputs) every folded block
    is compared with its original on the inputs that it gets. Raises ModelError for a block that
    cannot be folded, or that computes something else then.

    Source: RepVGG, arXiv 2101.03697.
    """
    if next(_waiting(model), None) is None and not _computed(model):
        return model
    try:
        folded = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied: {_cause(error)}") from error
    visited: list[nn.Module] = []
    while (waiting := next(_waiting(folded, visited), None)) is not None:
        name, block, method = waiting
        deployed = _fold(name, block, method)
        visited += [block, deployed]
        folded = _put(folded, block, deployed)
    for block, plain in _computed(folded):
        vars(plain)[_MARK] = True
        folded = _put(folded, block, plain)
    if folded_blocks(folded) == folded_blocks(model):
        return model
    if example is not None:
        _compare(model, folded, example)
    return folded


def folded_blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of the blocks that are folded, by :func:`reparameterize` or before; "" is all of it."""
    return tuple(name for name, module in model.named_modules() if _is_folded(module))


def computes_weights(model: nn.Module) -> bool:
    """Whether folding makes convolutions plain, which may leave all shapes as they are."""
    return bool(_computed(model))


def _computed(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions that compute their weight, each with the plain one that takes its place."""
    pairs = ((module, plain_convolution(module)) for module in model.modules())
    return [(module, plain) for module, plain in pairs if plain is not None]


def _is_folded(module: nn.Module) -> bool:
    return _MARK in vars(module) or any(
        isinstance(getattr(module, name, None), nn.Module) for name in _DEPLOYED
    )


def _waiting(
    model: nn.Module, visited: Collection[nn.Module] = ()
) -> Iterator[tuple[str, nn.Module, str]]:
    """Blocks to fold, outer ones first: those fold what they hold by themselves."""
    past = {id(module) for module in visited}
    for name, module in model.named_modules():
        if id(module) in past or _is_folded(module):
            continue
        method = next((m for m in METHODS if _offers(module, m)), None)
        if method is not None:
            yield name, module, method


def _offers(module: nn.Module, method: str) -> bool:
    """Whether the class has a ``method`` that takes no arguments.

    A variational network's ``reparameterize`` takes two. ``fuse`` is also what merges one layer
    with its norm, which is no branch, and training needs that norm.
    """
    if not inspect.isfunction(getattr(type(module), method, None)):
        return False
    arguments = inspect.signature(getattr(module, method)).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(a.default is a.empty and a.kind not in optional for a in arguments):
        return False
    layers = sum(isinstance(part, LAYER_TYPES) for part in module.modules())
    return method != "fuse" or layers > 1


def _fold(name: str, block: nn.Module, method: str) -> nn.Module:
    """``block`` folded, in place or as another module; itself where there is nothing to fold."""
    before = _layout(block)
    modes = {part: part.training for part in block.modules()}
    trained = {own: parameter.requires_grad for own, parameter in block.named_parameters()}
    subject = copy.deepcopy(block) if method == "fuse" else block
    try:
        with torch.no_grad():
            returned = getattr(subject.eval(), method)()
    except Exception as error:
        raise ModelError(
            f"cannot fold {_label(name, block)}: its {method}() failed with {_cause(error)}; "
            "mend it, or add --no-reparameterize to keep its branches"
        ) from error
    if method == "fuse":
        folded = returned if isinstance(returned, LAYER_TYPES) else block
    else:
        in_place = _layout(block) != before or not isinstance(returned, nn.Module)
        folded = block if in_place else returned
    for part in folded.modules():
        part.training = modes.get(part, modes[block])
    if folded is not block or _layout(block) != before:
        _settle(folded, method, trained)
    return folded


def _settle(folded: nn.Module, method: str, trained: dict[str, bool]) -> None:
    """Put right what methods leave behind, and note that the block is folded."""
    for part in folded.modules():
        vars(part).pop("id_tensor", None)  # as large as the weights, and of no use any more
    for name, parameter in folded.named_parameters():  # many methods switch gradients off
        parameter.requires_grad_(trained.get(name, any(trained.values())))
    forward = getattr(folded, "forward_fuse", None)
    if method == "fuse_convs" and forward is not None and "forward" not in vars(folded):
        vars(folded)["forward"] = forward
    vars(folded)[_MARK] = True


def _layout(module: nn.Module) -> tuple[Any, ...]:
    """What a module consists of."""
    parts = [(name, type(part)) for name, part in module.named_modules()]
    return parts, [(name, tuple(t.shape)) for name, t in module.state_dict().items()]


def _put(model: nn.Module, block: nn.Module, other: nn.Module) -> nn.Module:
    """``model`` with ``other`` wherever ``block`` is."""
    if model is block:
        return other
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is block:
                parent._modules[name] = other
    return model


def _compare(model: nn.Module, folded: nn.Module, example: Any) -> None:
    """Run ``model`` on ``example`` and every folded block on what the original one gets."""
    originals, blocks = dict(model.named_modules()), dict(folded.named_modules())
    computed: dict[str, Any] = {}
    hooks = []

    def watch(name: str) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
            computed[name] = blocks[name](*args, **kwargs)

        def after(module: nn.Module, _: Any, out: Any) -> None:
            error = _difference(computed.pop(name), out)
            if error is not None:
                raise ModelError(
                    f"{_label(name, module)} computes something else when it is folded: {error}; "
                    "mend it, or add --no-reparameterize to keep its branches"
                )

        hooks.append(originals[name].register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(originals[name].register_forward_hook(after))

    for name in folded_blocks(folded):
        if name in originals and not _is_folded(originals[name]):
            watch(name)
    try:
        with torch.no_grad(), evaluating(model), evaluating(folded), refusing(model, example):
            if isinstance(example, dict):
                model(**example)
            else:
                model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in hooks:
            handle.remove()


def _difference(outputs: Any, wanted: Any) -> str | None:
    """How two outputs differ, in words, beyond what rounding makes of them."""
    pairs = [
        [leaf for leaf in tree_leaves(side) if isinstance(leaf, Tensor)]
        for side in (outputs, wanted)
    ]
    shapes = [[tuple(t.shape) for t in side] for side in pairs]
    if shapes[0] != shapes[1]:
        return f"its outputs have shapes {shapes[0]}, not {shapes[1]}"
    for mine, theirs in zip(*pairs, strict=True):
        scale = theirs.detach().nan_to_num().abs().max().item() if theirs.numel() else 0.0
        precision = torch.finfo(theirs.dtype).eps if theirs.is_floating_point() else 0.0
        tolerance = precision**0.5 * scale
        if not torch.allclose(mine, theirs, rtol=0, atol=tolerance, equal_nan=True):
            apart = (mine - theirs).abs().max().item()
            return f"its output is off by {apart:.2g}, where the largest value is {scale:.2g}"
    return None


def _label(name: str, block: nn.Module) -> str:
    return f"{name or 'the model itself'} ({type(block).__name__})"


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
