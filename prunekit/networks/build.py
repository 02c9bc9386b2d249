"""Models by name: torchvision, timm, the zoo, and the user's own factories."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit import zoo
from prunekit.networks.detectors import background, plain_detector
from prunekit.networks.vision import torchvision
from prunekit.networks.weight_layers import KINDS
from prunekit.networks.weights import take_state
from prunekit.support.errors import ModelError, UsageError, first_line
from prunekit.support.progress import say
from prunekit.support.user_code import call_factory

_NO_AUX = {"aux_logits": False, "init_weights": True}
"""Auxiliary heads exist in training mode only and would go stale when channels are removed."""
_WITH_AUX = ("googlenet", "inception_v3")

_TENSORS = (".pt", ".pth", ".safetensors", ".ckpt", ".bin")
_FILES = dict.fromkeys(_TENSORS, "a file of weights") | {
    ".onnx": "an ONNX file",
    ".engine": "a TensorRT engine",
    ".xml": "an OpenVINO file",
    ".pt2": "a compiled package",
    ".tflite": "a TensorFlow Lite file",
}
"""Files that people give as MODEL, and what they are."""

SAFE_PREFIXES = ("torchvision:", "timm:", "zoo:")
"""Specs that name a known library's model; everything else names Python code to run."""


def is_library(spec: str) -> bool:
    """Whether ``spec`` is ``torchvision:NAME``, ``timm:NAME`` or ``zoo:NAME`` and nothing more."""
    return f"{spec.rpartition(':')[0]}:" in SAFE_PREFIXES


@dataclass(frozen=True)
class BuiltModel:
    """A dense module, and how to build its structure again."""

    module: nn.Module
    spec: str
    arguments: dict[str, int] = field(default_factory=dict)


def build(
    spec: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    pretrained: bool = False,
) -> BuiltModel:
    """The model ``spec`` names, with the head for ``num_classes`` where the factory takes it."""
    kind, _, name = spec.rpartition(":")
    suffix = Path(spec).suffix
    if suffix in _FILES and not Path(spec).is_dir():
        raise ModelError(
            f"{spec} is {_FILES[suffix]}, not a network that can be pruned; give the module "
            "that it was made from, as path/file.py:factory"
            + (f", and its weights as --weights {spec}" if suffix in _TENSORS else "")
        )
    if not kind or not name:
        raise ModelError(
            f"unknown model {spec!r}; write torchvision:NAME, timm:NAME, zoo:NAME, "
            "path/file.py:factory, package.module:factory or a run folder"
        )
    if pretrained and kind not in ("torchvision", "timm"):
        raise UsageError(
            f"`--pretrained` is for torchvision and timm models, not {spec!r}; use `--weights FILE`"
        )
    if kind == "torchvision":
        return _torchvision(spec, name, num_classes, pretrained)
    if kind == "timm":
        return _timm(spec, name, num_classes, in_channels, pretrained)
    if kind == "zoo":
        arguments = {"num_classes": num_classes or 10, "in_channels": in_channels or 3}
        if name in zoo.DETECTORS:
            torchvision()  # which it is built of
        return BuiltModel(plain_detector(zoo.build(name, **arguments)), spec, arguments)
    offered = {"num_classes": num_classes, "in_channels": in_channels}
    given = {name: value for name, value in offered.items() if value is not None}
    module, arguments = call_factory(spec, given, ModelError)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec} returned {type(module).__name__}, not a torch.nn.Module")
    return BuiltModel(plain_detector(module), spec, arguments)


def rebuild(spec: str, arguments: Mapping[str, int]) -> nn.Module:
    """The dense structure again, from what :class:`BuiltModel` recorded."""
    module = build(
        spec,
        num_classes=arguments.get("num_classes"),
        in_channels=arguments.get("in_channels"),
    ).module
    if "transform_input" in arguments:
        module.transform_input = bool(arguments["transform_input"])  # type: ignore[assignment]
    return module


def _torchvision(spec: str, name: str, num_classes: int | None, pretrained: bool) -> BuiltModel:
    models = torchvision().models
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}{_close(name, models.list_models())}")
    backbone: dict[str, Any] = {}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        backbone["weights_backbone"] = None  # which would be fetched otherwise
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    without = _NO_AUX if name in _WITH_AUX else {}
    head = {key: count + background(name) for key, count in arguments.items()}
    module = plain_detector(models.get_model(name, weights=None, **without, **backbone, **head))
    if pretrained:
        try:
            loaded = models.get_model(name, weights="DEFAULT", **backbone)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"cannot fetch pretrained weights of {spec}: {error}; use `--weights FILE`"
            ) from error
        _take_over(spec, module, loaded.state_dict())
        if getattr(loaded, "transform_input", False):  # the images those weights were trained on
            module.transform_input = True  # type: ignore[assignment]
            arguments["transform_input"] = 1
    return BuiltModel(module, spec, arguments)


def _timm(
    spec: str, name: str, num_classes: int | None, in_channels: int | None, pretrained: bool
) -> BuiltModel:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"{spec}: timm is not installed; pip install 'prunekit[timm]'") from error
    if name not in timm.list_models():
        raise ModelError(f"timm has no model {name!r}{_close(name, timm.list_models())}")
    arguments = {
        key: value
        for key, value in (("num_classes", num_classes), ("in_channels", in_channels))
        if value is not None
    }
    extra: dict[str, Any] = {"in_chans": in_channels} if in_channels else {}
    if num_classes is not None:
        extra["num_classes"] = num_classes
    try:
        module = timm.create_model(name, pretrained=pretrained, **extra)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot build {spec}: {first_line(error)}") from error
    config: Any = getattr(module, "pretrained_cfg", {})
    before = config.get("num_classes", num_classes)
    if pretrained and num_classes is not None and num_classes != before:
        _say_new_head(str(config.get("classifier")), num_classes, before)
    return BuiltModel(module, spec, arguments)


def _take_over(spec: str, module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load pretrained ``state``; the names left out, the head's where its classes differ."""
    own = module.state_dict()
    given = {n: t for n, t in state.items() if n in own or not n.lower().startswith("aux")}
    shapes, theirs = ({n: tuple(t.shape) for n, t in side.items()} for side in (own, given))
    left = sorted(n for n in {*own, *given} if shapes.get(n) != theirs.get(n))
    head = _head(module)
    for name in left:
        mine, other = shapes.get(name), theirs.get(name)
        same_inputs = mine is not None and other is not None and mine[1:] == other[1:]
        if name.rpartition(".")[0] != head or not same_inputs:
            raise ModelError(
                f"the pretrained weights do not fit {spec}: {name} is {other or 'missing'} there "
                f"and {mine or 'missing'} here; only the classes of the head ({head}) may differ"
            )
    take_state(module, {n: t for n, t in given.items() if n not in left})
    if left:
        _say_new_head(head, shapes[left[0]][0], theirs[left[0]][0])
    return left


def _head(module: nn.Module) -> str:
    """The last linear or convolutional layer."""
    names = [name for name, layer in module.named_modules() if isinstance(layer, KINDS)]
    return names[-1] if names else ""


def _say_new_head(name: str, classes: int, pretrained: int) -> None:
    say(
        f"note: the head {name} has {classes} classes, the pretrained one {pretrained}: it starts "
        "at random; add --dense-epochs to train it before pruning"
    )


def _close(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
