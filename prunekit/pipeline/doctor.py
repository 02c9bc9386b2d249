"""What is to be known of a network and a machine in a bug report, and nothing else of either."""

from __future__ import annotations

import platform
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.core.target import package_version
from prunekit.exporting import export
from prunekit.networks.running import tensors
from prunekit.networks.slimming import slim
from prunekit.support.errors import PrunekitError
from prunekit.support.progress import quietly
from prunekit.tracing import trace

PACKAGES = (
    *("prunekit", "torch", "torchvision", "timm", "transformers", "onnx", "onnxscript"),
    *("onnxruntime", "openvino", "tensorrt", "numpy"),
)
_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "diffusers", "ultralytics")
T = TypeVar("T")


@dataclass(frozen=True)
class Checkup:
    """One page: versions, what goes and what stays with the reasons, what an export does."""

    versions: dict[str, str]
    python: str
    machine: str
    inputs: list[str]
    layers: dict[str, int]
    facts: dict[str, float | int]
    reasons: dict[str, int]
    notes: list[str]
    outcomes: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def markdown(self) -> str:
        """The page."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        layers = ", ".join(f"{count} {kind}" for kind, count in self.layers.items())
        lines = ["## prunekit doctor", "", f"- versions: {versions}"]
        lines += [f"- Python {self.python} on {self.machine}", f"- input: {'; '.join(self.inputs)}"]
        lines += [f"- layers: {layers}"] if layers else []
        lines += [f"- {name}: {value:g}" for name, value in self.facts.items()]
        lines += [f"- stays ({count}): {reason}" for reason, count in self.reasons.items()]
        lines += [f"- note: {note}" for note in self.notes]
        for step, outcome in self.outcomes.items():
            lines.append(f"- {step}: {outcome} ({self.seconds[step]:.1f} s)")
        return "\n".join(lines)


def examine(model: nn.Module, example: Any) -> Checkup:
    """Trace, slim and export ``model``; what fails is part of the page.

    Names of the user's modules, classes and files are left out of it.
    """
    scrub, steps = _Scrubbed(model), _Steps()
    graph = steps.take("trace", lambda: trace(model, example), scrub)
    if graph is not None:
        plan = ChannelPlan.random(graph, 0.5, 0)
        small = steps.take("slim", lambda: slim(model, plan), scrub)
        with tempfile.TemporaryDirectory(prefix="prunekit-") as folder, quietly():
            for name, module in (("export", model), ("export of the slim network", small)):
                if module is not None:
                    path = Path(folder) / "model.onnx"
                    steps.take(name, partial(export, module, example, path), scrub)
    versions = {name: package_version(name) for name in PACKAGES}
    given = [example[n] for n in example] if isinstance(example, dict) else example
    return Checkup(
        versions={name: v for name, v in versions.items() if v not in ("", "unknown", "none")},
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        inputs=[f"{'x'.join(map(str, t.shape))} {_type(t)}" for t in tensors(given)],
        layers={} if graph is None else dict(Counter(layer.kind for layer in graph.layers)),
        facts={} if graph is None else _facts(model, graph),
        reasons={} if graph is None else _reasons(graph, scrub),
        notes=[] if graph is None else [scrub(note) for note in graph.notes],
        outcomes=steps.outcomes,
        seconds=steps.seconds,
    )


def _type(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _facts(model: nn.Module, graph: ChannelGraph) -> dict[str, float | int]:
    return {
        "million weights": sum(p.numel() for p in model.parameters()) / 1e6,
        "MMACs": graph.macs({}) / 1e6,
        "MMACs between activations": graph.activation_macs / 1e6,
        "% of MACs in layers that can be narrowed": round(100 * graph.prunable_macs_share(), 1),
        "groups that can be pruned": sum(group.prunable for group in graph.groups),
    }


def _reasons(graph: ChannelGraph, scrub: Callable[[str], str]) -> dict[str, int]:
    """Why groups stay, the commonest first."""
    counts = Counter(scrub(group.reason) for group in graph.groups if group.reason)
    return dict(counts.most_common())


class _Scrubbed:
    """Text without the user's names: of modules, of classes that are no library's, of files."""

    def __init__(self, model: nn.Module) -> None:
        paths = sorted((name for name, _ in model.named_modules() if name), key=len, reverse=True)
        own = {
            type(module).__name__
            for module in model.modules()
            if type(module).__module__.partition(".")[0] not in _LIBRARIES
        }
        self._words = [
            *((re.compile(rf"(?<![\w.]){re.escape(path)}(?![\w.])"), "LAYER") for path in paths),
            *((re.compile(rf"\b{re.escape(name)}\b"), "MODULE") for name in sorted(own)),
            (re.compile(r"(?:[A-Za-z]:)?(?:/[\w.+@~-]+){2,}"), "PATH"),
        ]

    def __call__(self, text: str) -> str:
        for pattern, word in self._words:
            text = pattern.sub(word, text)
        return re.sub(r"LAYER(?:, LAYER)+", "LAYERs", text)


class _Steps:
    """What was done, how it went, and how long it took."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def take(self, name: str, step: Callable[[], T], scrub: Callable[[str], str]) -> T | None:
        """What ``step`` gives; None where it is refused, and why is kept."""
        started, made = time.monotonic(), None
        try:
            made = step()
            self.outcomes[name] = "done"
        except PrunekitError as error:
            self.outcomes[name] = f"refused: {scrub(str(error))}"
        self.seconds[name] = time.monotonic() - started
        return made
