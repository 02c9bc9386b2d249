"""Layers: convolutions, products of matrices, attention, tables of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.core.role import IN, OUT, SCALED_OUT
from prunekit.networks.slimming import is_depthwise
from prunekit.tracing.calls import Call
from prunekit.tracing.labels import Labels, Part, along, lift, varying
from prunekit.tracing.operators.norms import settled
from prunekit.tracing.operators.pointwise import axes_of, meet
from prunekit.tracing.operators.registry import handles

NOTHING_READ = "it reads the model's input, or what has no channels"


@handles("convolution _convolution conv1d conv2d conv3d mkldnn_convolution")
def convolution(labels: Labels, call: Call) -> None:
    """Reads channels, writes others; its groups go as a whole."""
    x, weight, bias = call.x, call["weight"], call["bias"]
    transposed, groups = bool(call["transposed"]), call["groups"]
    read, passed = [], []
    for part in labels.parts(x):
        axes = varying(part)
        if 1 in axes:
            read.append(labels.collapse(part, [axis for axis in axes if axis != 1]))
        elif axes == (0,) or (set(weight.shape[2:]) == {1} and set(call["stride"]) == {1}):
            passed.append(part)
        else:
            labels.freeze([part], f"{labels.where} mixes positions of it")
    owners = labels.own.owners(weight)
    if not owners:
        written = _by_computed_weight(labels, call, read)
    elif groups == 1:
        ins, outs = (labels.axis_nodes(weight, axis) for axis in ((0, 1) if transposed else (1, 0)))
        _read(labels, read, ins, x.ndim)
        written = [along(outs, 1, x.ndim)] if len(outs) > 1 else []
    elif is_depthwise(owners[0][1]):
        own = along(labels.axis_nodes(weight, 0), 1, x.ndim)
        written = settled(labels, x, [*read, own])
    elif transposed:
        reason = f"{owners[0][0]} is a grouped transposed convolution"
        labels.freeze([*read, *labels.parts(weight)], reason)
        written = []
    else:
        outs = labels.axis_nodes(weight, 0)
        _grouped(labels, read, outs, owners, x.shape[1], groups)
        written = [along(outs, 1, x.ndim)] if len(outs) > 1 else []
    if bias is not None:
        written += [along(part.flatten(), 1, x.ndim) for part in labels.parts(bias)]
    labels.put(call.out, [*written, *passed])


def _read(labels: Labels, read: Sequence[Part], nodes: Tensor, rank: int) -> None:
    """A layer's inputs are the channels that it reads; where there are none, they stay."""
    if len(nodes) < 2:
        labels.freeze(read, labels.constant)
    elif read:
        labels.combine([along(nodes, 1, rank), *read])
    else:
        labels.freeze([nodes], NOTHING_READ)


def _grouped(
    labels: Labels,
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
            labels.freeze([*read, outs], reason)
            return
        nodes = labels.nodes.of((name, IN), inputs).view(groups, -1)
        labels.nodes.join(nodes, nodes[:, :1])
        labels.nodes.join(outs.view(groups, -1), nodes[:, :1])
        if read:
            labels.nodes.join(read[0].flatten(), nodes.flatten())
        else:
            labels.freeze([nodes], NOTHING_READ)


def _by_computed_weight(labels: Labels, call: Call, read: Sequence[Part]) -> list[Part]:
    """What a convolution writes whose weight was computed, such as a standardised one."""
    parts, rank = labels.parts(call["weight"]), call.x.ndim
    if call["transposed"] or call["groups"] > 1:
        labels.freeze([*parts, *read], f"{labels.where} computes a grouped convolution's weight")
        return []
    outs = [part for part in parts if varying(part) == (0,)]
    ins = [part for part in parts if varying(part) == (1,)]
    labels.freeze([p for p in parts if varying(p) not in ((0,), (1,))], "its weight is computed")
    if ins and read:
        labels.combine([along(ins[0].flatten(), 1, rank), *read])
    else:
        labels.freeze([*ins, *read], f"{labels.where} computes the weight that reads it")
    return [along(part.flatten(), 1, rank) for part in outs]


Matrix = tuple[Sequence[Part], Sequence[int]]
"""A matrix's labels and its shape, leading axes first."""


def contract(labels: Labels, left: Matrix, right: Matrix) -> list[Part]:
    """Labels of (..., i, k) @ (..., k, j), both of the same rank."""
    batch, size = len(left[1]) - 2, left[1][-1]
    read_left, kept_left = _along_sum(labels, left[0], batch, batch + 1)
    read_right, kept_right = _along_sum(labels, right[0], batch, batch)
    read_rows = [part.transpose(-1, -2) for part in read_right]
    if read_left and read_rows:
        labels.combine([*read_left, *read_rows])
    elif size > 1:
        labels.freeze(
            [*read_left, *read_rows], "it is multiplied with values that stay as they are"
        )
    kept = labels.combine([*kept_left, *kept_right])
    stuck = []
    for parts, shape in ((kept_left, left[1]), (kept_right, right[1])):
        for part in kept:
            shared = [axis for axis in varying(part) if axis < batch and shape[axis] > 1]
            if shared and not axes_of(parts).intersection(shared):
                stuck.append(part)
    labels.freeze(stuck, labels.constant)
    return [part for part in kept if not any(part is other for other in stuck)]


def _along_sum(
    labels: Labels, parts: Sequence[Part], batch: int, axis: int
) -> tuple[list[Part], list[Part]]:
    """Parts along the axis that is summed over, and the others; of heads one of their axes."""
    read, kept = [], []
    for part in parts:
        heads = [a for a in varying(part) if a < batch]
        if heads and not labels.whole_heads and len(varying(part)) > len(heads):
            part = labels.collapse(part, heads)
        elif heads and axis in varying(part):
            part = labels.collapse(part, [axis])
        if axis in varying(part):
            read.append(labels.collapse(part, [a for a in varying(part) if a != axis]))
        elif varying(part):
            kept.append(part)
    return read, kept


def transposed_matrix(labels: Labels, tensor: Tensor) -> Matrix:
    """A matrix with its last two axes exchanged."""
    parts = [part.transpose(-1, -2) for part in labels.parts(tensor)]
    return parts, (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])


@handles("mm bmm matmul mv dot")
def product(labels: Labels, call: Call) -> None:
    """A product of matrices."""
    a, b = call.args[:2]
    if a.ndim != b.ndim or a.ndim < 2:
        reason = f"{labels.where} multiplies vectors ({call.name}), which is not followed"
        labels.freeze([*labels.parts(a), *labels.parts(b)], reason)
        return
    labels.put(call.out, contract(labels, (labels.parts(a), a.shape), (labels.parts(b), b.shape)))


@handles("addmm baddbmm addbmm")
def product_and_sum(labels: Labels, call: Call) -> None:
    """A product of matrices, and something added to it."""
    bias, a, b = call.args[:3]
    labels.put(call.out, contract(labels, (labels.parts(a), a.shape), (labels.parts(b), b.shape)))
    meet(labels, [bias, call.out], call.out)


@handles("linear")
def linear(labels: Labels, call: Call) -> None:
    """A layer's product, where it comes as one operator."""
    x, weight, bias = call.x, call["weight"], call["bias"]
    parts, shape = transposed_matrix(labels, weight)
    right = [lift(part, x.ndim) for part in parts], (*[1] * (x.ndim - 2), *shape)
    labels.put(call.out, contract(labels, (labels.parts(x), x.shape), right))
    if bias is not None:
        meet(labels, [bias, call.out], call.out)


@handles(
    "scaled_dot_product_attention _scaled_dot_product_attention_math "
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_fused_attention_overrideable"
)
def attention(labels: Labels, call: Call) -> None:
    """softmax(q k^T) v; what a mask adds is per head."""
    q, k, v = (call[name] for name in ("query", "key", "value"))
    mask = next((call[n] for n in ("attn_mask", "attn_bias") if call[n] is not None), None)
    if call["scale"] is None:
        _keep_scale(labels, q, k)
    keys, values = (_for_every_query(labels, q, tensor) for tensor in (k, v))
    turned = [part.transpose(-1, -2) for part in keys[0]], (*keys[1][:-2], k.shape[-1], k.shape[-2])
    weights = contract(labels, (labels.parts(q), q.shape), turned)
    shape = (*q.shape[:-1], k.shape[-2])
    if mask is not None:
        scores = torch.empty(shape, device="meta")
        labels.put(scores, weights)
        meet(labels, [scores, mask], scores)
        weights = labels.parts(scores)
    for part in weights:
        if len(shape) - 1 in varying(part):
            labels.freeze([part], f"{labels.where} compares channels (softmax)")
    kept = [part for part in weights if len(shape) - 1 not in varying(part)]
    labels.put(call.result, contract(labels, (kept, shape), values))


def _for_every_query(labels: Labels, q: Tensor, tensor: Tensor) -> Matrix:
    """Keys or values, each head of which is there for as many heads of queries as share it."""
    heads = tensor.shape[-3] if tensor.ndim > 3 else 1
    times = q.shape[-3] // heads if heads and q.ndim == tensor.ndim > 3 else 1
    if times < 2 or heads == 1:
        return labels.parts(tensor), tensor.shape
    parts = [
        part if part.shape[-3] == 1 else part.repeat_interleave(times, -3)
        for part in labels.parts(tensor)
    ]
    return parts, (*tensor.shape[:-3], q.shape[-3], *tensor.shape[-2:])


def _keep_scale(labels: Labels, q: Tensor, k: Tensor) -> None:
    """Heads that become narrower are scaled by more: the layer that writes queries makes up."""
    last = q.ndim - 1
    narrowed = [p for p in labels.parts(q) if last in varying(p)]
    if labels.whole_heads:
        narrowed = [p for p in narrowed if varying(p) == (last,)]
    writers = {slot: rows for p in narrowed for slot, rows in labels.nodes.where(p).items()}
    layers = [labels.running.modules[name] for name, _ in writers]
    plain = all(type(m) is nn.Linear and len(labels.own.owners(m.weight)) == 1 for m in layers)
    if labels.whole_heads or not plain or any(role != OUT for _, role in writers):
        reason = f"the scale of {labels.where} follows the width of its heads"
        same = [p for p in labels.parts(k) if varying(p) == (last,)]
        labels.freeze([*narrowed, *same], reason)
        return
    for (name, _), rows in writers.items():
        module: Any = labels.running.modules[name]
        scaled, written = (
            labels.nodes.of((name, role), module.out_features)[rows] for role in (SCALED_OUT, OUT)
        )
        labels.nodes.join(scaled, written)


@handles("embedding")
def embedding(labels: Labels, call: Call) -> None:
    """Rows of a table: its columns are channels."""
    out: Any = call.out
    for part in labels.parts(call["weight"]):
        if varying(part) == (1,):
            labels.put(out, [along(part.flatten(), out.ndim - 1, out.ndim)])
        else:
            labels.freeze([part], "its rows are looked up")
