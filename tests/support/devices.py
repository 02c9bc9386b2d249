"""Fake devices that throttle, fall silent, or differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph
from prunekit.core.target import Target
from prunekit.exporting import narrow_onnx
from prunekit.latency import LatencyTable
from prunekit.runtimes import runtime_for
from prunekit.runtimes.fake import Fake
from support.tables import EXAMPLE, FAKE

Be = Callable[..., None]


def truth(graph: ChannelGraph, net: nn.Module, folder: Path, plans: list[pk.ChannelPlan]):
    """Milliseconds by the fake device's formula."""
    dense = pk.export(net, EXAMPLE, folder / "dense.onnx")
    found = []
    for number, plan in enumerate(plans):
        made = narrow_onnx(dense, plan, folder / f"{number}.onnx")
        assert made is not None
        engine = runtime_for(FAKE).load(made, FAKE)
        found.append(float(np.median(engine.time(99))))
    return np.array(found)


def predicted(table: LatencyTable, graph: ChannelGraph, plans: list[pk.ChannelPlan]):
    return np.array([pk.predict(graph, plan, table).ms for plan in plans])


class Silent(Fake):
    """Tells no times of layers."""

    def profiler(self, artifact: Artifact, target: Target) -> None:
        return None
