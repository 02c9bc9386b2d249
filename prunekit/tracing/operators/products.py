"""Layers: convolutions, products of matrices, attention, tables of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.networks.slimming import is_depthwise
from prunekit.tracing.calls import Call, handles
from prunekit.tracing.follow_dispatch import Flow, Part, along, lift, varying
from prunekit.tracing.operators.norms import settled
from prunekit.tracing.operators.pointwise import axes_of, meet

NOTHING_READ = "it reads the model's input, or what has no channels"


@handles("convolution _convolution conv1d conv2d conv3d mkldnn_convolution")
def convolution(flow: Flow, call: Call) -> None:
    """Reads channels, writes others; its groups go as a whole."""
    x, weight, bias = call.x, call["weight"], call["bias"]
    transposed, groups = bool(call["transposed"]), call["groups"]
    read, passed = [], []
    for part in flow.parts(x):
        axes = varying(part)
        if 1 in axes:
            read.append(flow.collapse(part, [axis for axis in axes if axis != 1]))
        elif axes == (0,) or (set(weight.shape[2:]) == {1} and set(call["stride"]) == {1}):
            passed.append(part)
        else:
            flow.freeze([part], f"{flow.where} mixes positions of it")
    owners = flow.owners(weight)
    if not owners:
        written = _by_computed_weight(flow, call, read)
    elif groups == 1:
        ins, outs = (flow.axis_nodes(weight, axis) for axis in ((0, 1) if transposed else (1, 0)))
        _read(flow, read, ins, x.ndim)
        written = [along(outs, 1, x.ndim)] if len(outs) > 1 else []
    elif is_depthwise(owners[0][1]):
        own = along(flow.axis_nodes(weight, 0), 1, x.ndim)
        written = settled(flow, x, [*read, own])
    elif transposed:
        reason = f"{owners[0][0]} is a grouped transposed convolution"
        flow.freeze([*read, *flow.parts(weight)], reason)
        written = []
    else:
        outs = flow.axis_nodes(weight, 0)
        _grouped(flow, read, outs, owners, x.shape[1], groups)
        written = [along(outs, 1, x.ndim)] if len(outs) > 1 else []
    if bias is not None:
        written += [along(part.flatten(), 1, x.ndim) for part in flow.parts(bias)]
    flow.put(call.out, [*written, *passed])


def _read(flow: Flow, read: Sequence[Part], nodes: Tensor, rank: int) -> None:
    """A layer's inputs are the channels that it reads; where there are none, they stay."""
    if len(nodes) < 2:
        flow.freeze(read, flow.constant)
    elif read:
        flow.combine([along(nodes, 1, rank), *read])
    else:
        flow.freeze([nodes], NOTHING_READ)


def _grouped(
    flow: Flow,
    read: Sequence[Part],
    outs: Tensor,
    owners: Sequence[tuple[str, nn.Module, str]],
    inputs: int,
    groups: int,
) -> None:
    """Whole groups of a grouped convolution: what they read and what they write."""
    for name, module, _ in owners:
        if not isinstance(module, nn.modules.conv._ConvNd):
            reason = (
                f"{name or 'the model'} is no convolution but has a grouped convolution's weight"
            )
            flow.freeze([*read, outs], reason)
            return
        nodes = flow.nodes.of((name, "in"), inputs).view(groups, -1)
        flow.nodes.join(nodes, nodes[:, :1])
        flow.nodes.join(outs.view(groups, -1), nodes[:, :1])
        if read:
            flow.nodes.join(read[0].flatten(), nodes.flatten())
        else:
            flow.freeze([nodes], NOTHING_READ)


def _by_computed_weight(flow: Flow, call: Call, read: Sequence[Part]) -> list[Part]:
    """What a convolution writes whose weight was computed, such as a standardised one."""
    parts, rank = flow.parts(call["weight"]), call.x.ndim
    if call["transposed"] or call["groups"] > 1:
        flow.freeze([*parts, *read], f"{flow.where} computes a grouped convolution's weight")
        return []
    outs = [part for part in parts if varying(part) == (0,)]
    ins = [part for part in parts if varying(part) == (1,)]
    flow.freeze([p for p in parts if varying(p) not in ((0,), (1,))], "its weight is computed")
    if ins and read:
        flow.combine([along(ins[0].flatten(), 1, rank), *read])
    else:
        flow.freeze([*ins, *read], f"{flow.where} computes the weight that reads it")
    return [along(part.flatten(), 1, rank) for part in outs]


Matrix = tuple[Sequence[Part], Sequence[int]]
"""A matrix's labels and its shape, leading axes first."""


def contract(flow: Flow, left: Matrix, right: Matrix) -> list[Part]:
    """Labels of (..., i, k) @ (..., k, j), both of the same rank."""
    batch, size = len(left[1]) - 2, left[1][-1]
    read_left, kept_left = _along_sum(flow, left[0], batch, batch + 1)
    read_right, kept_right = _along_sum(flow, right[0], batch, batch)
    turned = [part.transpose(-1, -2) for part in read_right]
    if read_left and turned:
        flow.combine([*read_left, *turned])
    elif size > 1:
        flow.freeze([*read_left, *turned], "it is multiplied with values that stay as they are")
    found = flow.combine([*kept_left, *kept_right])
    stuck = []
    for parts, shape in ((kept_left, left[1]), (kept_right, right[1])):
        for part in found:
            shared = [axis for axis in varying(part) if axis < batch and shape[axis] > 1]
            if shared and not axes_of(parts).intersection(shared):
                stuck.append(part)
    flow.freeze(stuck, flow.constant)
    return [part for part in found if not any(part is other for other in stuck)]


def _along_sum(
    flow: Flow, parts: Sequence[Part], batch: int, axis: int
) -> tuple[list[Part], list[Part]]:
    """Parts along the axis that is summed over, and the others; of heads one of their axes."""
    read, kept = [], []
    for part in parts:
        heads = [a for a in varying(part) if a < batch]
        if heads and not flow.whole_heads and len(varying(part)) > len(heads):
            part = flow.collapse(part, heads)
        elif heads and axis in varying(part):
            part = flow.collapse(part, [axis])
        if axis in varying(part):
            read.append(flow.collapse(part, [a for a in varying(part) if a != axis]))
        elif varying(part):
            kept.append(part)
    return read, kept


def turned(flow: Flow, tensor: Tensor) -> Matrix:
    """A matrix with its last two axes exchanged."""
    parts = [part.transpose(-1, -2) for part in flow.parts(tensor)]
    return parts, (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])


@handles("mm bmm matmul mv dot")
def product(flow: Flow, call: Call) -> None:
    """A product of matrices."""
    a, b = call.args[:2]
    if a.ndim != b.ndim or a.ndim < 2:
        reason = f"{flow.where} multiplies vectors ({call.name}), which is not followed"
        flow.freeze([*flow.parts(a), *flow.parts(b)], reason)
        return
    flow.put(call.out, contract(flow, (flow.parts(a), a.shape), (flow.parts(b), b.shape)))


@handles("addmm baddbmm addbmm")
def product_and_sum(flow: Flow, call: Call) -> None:
    """A product of matrices, and something added to it."""
    bias, a, b = call.args[:3]
    flow.put(call.out, contract(flow, (flow.parts(a), a.shape), (flow.parts(b), b.shape)))
    meet(flow, [bias, call.out], call.out)


@handles("linear")
def linear(flow: Flow, call: Call) -> None:
    """A layer's product, where it comes as one operator."""
    x, weight, bias = call.x, call["weight"], call["bias"]
    parts, shape = turned(flow, weight)
    right = [lift(part, x.ndim) for part in parts], (*[1] * (x.ndim - 2), *shape)
    flow.put(call.out, contract(flow, (flow.parts(x), x.shape), right))
    if bias is not None:
        meet(flow, [bias, call.out], call.out)


@handles(
    "scaled_dot_product_attention _scaled_dot_product_attention_math "
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_fused_attention_overrideable"
)
def attention(flow: Flow, call: Call) -> None:
    """softmax(q k^T) v; what a mask adds is per head."""
    q, k, v = (call[name] for name in ("query", "key", "value"))
    mask = next((call[n] for n in ("attn_mask", "attn_bias") if call[n] is not None), None)
    if call["scale"] is None:
        _keep_scale(flow, q, k)
    weights = contract(flow, (flow.parts(q), q.shape), turned(flow, k))
    shape = (*q.shape[:-1], k.shape[-2])
    if mask is not None:
        scores = torch.empty(shape, device="meta")
        flow.put(scores, weights)
        meet(flow, [scores, mask], scores)
        weights = flow.parts(scores)
    for part in weights:
        if len(shape) - 1 in varying(part):
            flow.freeze([part], f"{flow.where} compares channels (softmax)")
    kept = [part for part in weights if len(shape) - 1 not in varying(part)]
    flow.put(call.result, contract(flow, (kept, shape), (flow.parts(v), v.shape)))


def _keep_scale(flow: Flow, q: Tensor, k: Tensor) -> None:
    """Heads that become narrower are scaled by more: the layer that writes queries makes up."""
    last = q.ndim - 1
    narrowed = [p for p in flow.parts(q) if last in varying(p)]
    if flow.whole_heads:
        narrowed = [p for p in narrowed if varying(p) == (last,)]
    writers = {slot: rows for p in narrowed for slot, rows in flow.nodes.where(p).items()}
    layers = [flow.modules[name] for name, _ in writers]
    plain = all(type(m) is nn.Linear and len(flow.owners(m.weight)) == 1 for m in layers)
    if flow.whole_heads or not plain or any(role != "out" for _, role in writers):
        reason = f"the scale of {flow.where} follows the width of its heads"
        same = [p for p in flow.parts(k) if varying(p) == (last,)]
        flow.freeze([*narrowed, *same], reason)
        return
    for (name, role), rows in writers.items():
        module: Any = flow.modules[name]
        scaled, written = (
            flow.nodes.of((name, kind), module.out_features)[rows] for kind in (f"~{role}", role)
        )
        flow.nodes.join(scaled, written)


@handles("embedding")
def embedding(flow: Flow, call: Call) -> None:
    """Rows of a table: its columns are channels."""
    out: Any = call.out
    for part in flow.parts(call["weight"]):
        if varying(part) == (1,):
            flow.put(out, [along(part.flatten(), out.ndim - 1, out.ndim)])
        else:
            flow.freeze([part], "its rows are looked up")
