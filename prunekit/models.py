"""Models by name: torchvision, timm, the zoo, and the user's own factories."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit import zoo
from prunekit.errors import FileError, ModelError, PrunekitError, UsageError

_NO_AUX = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
"""Auxiliary heads exist in training mode only and would go stale when channels are removed."""

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
    if not kind or not name:
        raise ModelError(
            f"unknown model {spec!r}; write torchvision:NAME, timm:NAME, zoo:NAME, "
            "path/file.py:factory, package.module:factory or a run folder"
        )
    if pretrained and kind not in ("torchvision", "timm"):
        raise UsageError(
            f"`--pretrained` is for torchvision and timm models, not {spec!r}; "
            "use `--weights FILE.safetensors`"
        )
    if kind == "torchvision":
        return _torchvision(spec, name, num_classes, pretrained)
    if kind == "timm":
        return _timm(spec, name, num_classes, in_channels, pretrained)
    if kind == "zoo":
        arguments = {"num_classes": num_classes or 10, "in_channels": in_channels or 3}
        return BuiltModel(zoo.build(name, **arguments), spec, arguments)
    factory = load_factory(spec)
    arguments = _accepted(factory, num_classes=num_classes, in_channels=in_channels)
    try:
        module = factory(**arguments)
    except PrunekitError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec} returned {type(module).__name__}, not a torch.nn.Module")
    return BuiltModel(module, spec, arguments)


def rebuild(spec: str, arguments: Mapping[str, int]) -> nn.Module:
    """The dense structure again, from what :class:`BuiltModel` recorded."""
    return build(
        spec,
        num_classes=arguments.get("num_classes"),
        in_channels=arguments.get("in_channels"),
    ).module


def _torchvision(spec: str, name: str, num_classes: int | None, pretrained: bool) -> BuiltModel:
    from torchvision import models

    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}{_close(name, models.list_models())}")
    extra: dict[str, Any] = dict(_NO_AUX.get(name, {}))
    if extra and not pretrained:
        extra["init_weights"] = True
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        extra["weights_backbone"] = None  # which would be fetched otherwise
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    module = models.get_model(name, weights=None, **extra, **arguments)
    if pretrained:
        try:
            loaded = models.get_model(name, weights="DEFAULT", **extra)
        except OSError as error:
            raise ModelError(
                f"cannot fetch pretrained weights of {spec}: {error}; "
                "use `--weights FILE.safetensors`"
            ) from error
        _take_over(module, loaded.state_dict())
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
        return BuiltModel(timm.create_model(name, pretrained=pretrained, **extra), spec, arguments)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"cannot build {spec}: {str(error).splitlines()[0]}") from error


def _take_over(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what fits; only the classification head may differ in shape."""
    own = module.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    module.load_state_dict({**own, **fitting})


def _close(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _accepted(factory: Callable[..., Any], **offered: int | None) -> dict[str, int]:
    """Those of ``offered`` that are set and that the factory takes."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {k: v for k, v in offered.items() if v is not None and k in parameters}


def load_factory(spec: str) -> Callable[..., Any]:
    """The callable that ``path/file.py:name`` or ``package.module:name`` means."""
    source, _, name = spec.rpartition(":")
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise ModelError(f"no file {source} (in {spec!r})")
        found = importlib.util.spec_from_file_location(f"_prunekit_user_{path.stem}", path)
        if found is None or found.loader is None:
            raise ModelError(f"cannot import {source}")
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module
        try:
            found.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{source} fails on import: {type(error).__name__}: {error}"
            ) from error
    else:
        try:
            module = importlib.import_module(source)
        except (Exception, SystemExit) as error:
            raise ModelError(f"cannot import {source!r} (in {spec!r}): {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ModelError(f"{source} has no callable {name!r}")
    return factory  # type: ignore[no-any-return]


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load a safetensors state into ``module``; every name and shape has to fit."""
    state = read_safetensors(path)
    own = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    wrong = sorted(n for n in own if n in state and tuple(state[n].shape) != own[n])
    if missing or extra or wrong:
        detail = (
            f"it lacks {missing[0]}"
            if missing
            else f"it has {extra[0]}, which the model lacks"
            if extra
            else f"{wrong[0]} is {tuple(state[wrong[0]].shape)}, not {own[wrong[0]]}"
        )
        raise FileError(f"{path} does not fit {type(module).__name__}: {detail}")
    module.load_state_dict(state)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a damaged one is named in the error."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileError(f"no file {path}")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is truncated or not a safetensors file ({error})") from error
