"""What TensorRT calls its layers, read back: the nodes of the ONNX file that each stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunekit.runtimes.onnx_graph import OnnxGraph

_REFORMAT = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ (?:to|from) (.+)$")
_BETWEEN = re.compile(
    r"^(?:copied_)?(?:un)?s(?:hu|quee|hap)\w*_between_(.+?)(?:_output)?_and_(.+)$"
)
_BESIDE = re.compile(r"^(?:copied_)?(?:shuffle|squeeze|unsqueeze|reshape)_(?:after|before)_(.+)$")
_UNNAMED = re.compile(r"^\(Unnamed Layer\* \d+\)")
_ADDED = re.compile(r"(?:_output| copy|_clone_\d+| \[\w+\]|_myl\d+_\d+)$")
"""What TensorRT puts behind the name of a node."""
_FOREIGN = re.compile(r"^\{ForeignNode\[(.+)\]\}")
_WRAPPER = re.compile(r"^(?:PWN|POINTWISE|COND)\((.*)\)$")


@dataclass(frozen=True)
class Stands:
    """The nodes a layer of an engine stands for, in the order it names them.

    ``layout`` layers only move data into another format; they are in no file.
    """

    nodes: tuple[str, ...]
    layout: bool = False


def stands_for(name: str, order: Sequence[str]) -> Stands:
    """What the layer called ``name`` stands for; ``order`` has the file's nodes as they run.

    Names are joined by ``+`` (one after the other), ``||`` (side by side) and ``,``, may be wrapped
    as ``PWN(...)`` (pointwise), and ``{ForeignNode[first...last]}`` is all from one to another.
    """
    text = name.strip()
    if match := _REFORMAT.match(text):
        return Stands(stands_for(match[1], order).nodes, layout=True)
    known = set(order)
    if text not in known:
        if match := _BETWEEN.match(text):
            return Stands(tuple(_named(match.groups(), known)), layout=True)
        if match := _BESIDE.match(text):
            return Stands(tuple(_named(match.groups(), known)), layout=True)
    return Stands(tuple(dict.fromkeys(_nodes(text, order, known))), text.endswith(" copy"))


def _nodes(text: str, order: Sequence[str], known: set[str]) -> Iterator[str]:
    if text in known:
        yield text
    elif match := _FOREIGN.match(text):
        yield from _range(match[1], order, known)
    elif match := _WRAPPER.match(text):
        yield from _nodes(match[1], order, known)
    else:
        parts = _split(text)
        if len(parts) > 1:
            for part in parts:
                yield from _nodes(part, order, known)
        else:
            yield from _named(parts, known)


def _named(texts: Iterable[str], known: set[str]) -> Iterator[str]:
    """The texts that are nodes, without what TensorRT put behind them."""
    for text in texts:
        name = text.strip()
        while name not in known and not _UNNAMED.match(name) and _ADDED.search(name):
            name = _ADDED.sub("", name)
        if name in known:
            yield name


def _range(text: str, order: Sequence[str], known: set[str]) -> Iterator[str]:
    """All nodes from the first to the last, or the ones that are known of the two."""
    first, dots, last = text.partition("...")
    ends = [list(_nodes(end.strip(), order, known)) for end in (first, last) if end]
    if dots and len(ends) == 2 and all(ends):
        low, high = order.index(ends[0][0]), order.index(ends[1][-1])
        if low <= high:
            yield from order[low : high + 1]
            return
    for nodes in ends:
        yield from nodes


def _split(text: str) -> list[str]:
    """The parts between ``+``, ``||`` and ``,`` that stand in no brackets."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        mark = next((m for m in (" + ", " || ", ", ") if text.startswith(m, place)), None)
        if depth == 0 and mark is not None:
            parts.append(text[start:place])
            place += len(mark)
            start = place
        else:
            place += 1
    return [*parts, text[start:]]


def layer_times(
    runs: Iterable[Iterable[tuple[str, float]]], graph: OnnxGraph
) -> tuple[list[dict[str, float]], float]:
    """Per run, layer name to microseconds, and the share of the time whose layer a name told.

    ``runs`` holds (TensorRT's layer, milliseconds) in running order. What no name tells is counted
    to the layer before, and what comes before all layers to the first.
    """
    order = list(graph.nodes)
    first = {graph.layers[0]: 1.0} if graph.layers else {}
    read: dict[str, tuple[dict[str, float], bool]] = {}
    rows: list[dict[str, float]] = []
    placed_ms = total = 0.0
    for run in runs:
        times: dict[str, float] = {}
        before = first
        for name, ms in run:
            if name not in read:
                stands = stands_for(name, order)
                read[name] = graph.shares(stands.nodes), bool(stands.nodes) or stands.layout
            shares, known = read[name]
            before = shares or before
            for layer, share in before.items():
                times[layer] = times.get(layer, 0.0) + share * ms * 1e3
            total += ms
            placed_ms += ms if known else 0.0
        rows.append(times)
    return rows, placed_ms / total if total else 1.0
