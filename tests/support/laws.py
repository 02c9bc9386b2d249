"""Laws that surfaces have to recover, and tables made of them."""

from __future__ import annotations

import numpy as np

from prunekit.core.graph import LayerShape
from prunekit.core.target import Environment, Target
from prunekit.latency import Entry, LatencyTable, Network, Protocol, Sample

HERE = Environment("fake device", "1")


def blocks(width, block):
    return -(-np.asarray(width) // block) * block


def law(coefficients, cin, cout, block):
    a, b, c, d = coefficients
    left, right = blocks(cin, block), blocks(cout, block)
    return a + b * left + c * right + d * left * right


def shapes(count):
    return [
        LayerShape("conv", (3, 3), (1, 1), (1, 1), 1, (8 + i, 8 + i), (8 + i, 8 + i))
        for i in range(count)
    ]


def sampled(measure, nets=8, layers=5, seed=0, scale=1.2, per_call=-1.0):
    """Entries and networks of a device whose layers take ``measure(layer, net, cin, cout)`` us."""
    rng = np.random.default_rng(seed)
    samples = [[] for _ in range(layers)]
    networks = []
    for net in range(nets):
        summed = 0.0
        for layer in range(layers):
            cin, cout = (int(w) for w in rng.integers(1, 17, 2) * 8)
            us = float(measure(layer, net, cin, cout))
            summed += us
            samples[layer].append(Sample(net, cin, cout, us, 0.1, 30))
        whole = scale * summed + per_call * layers
        networks.append(Network("net", 0.5, layers, summed, whole, 1.0, 30))
    entries = tuple(Entry(s, tuple(rows)) for s, rows in zip(shapes(layers), samples, strict=True))
    protocol = Protocol("harvest", nets, 3, 5, seed)
    table = LatencyTable(Target("fake"), HERE, protocol, 8, ("x",), entries, tuple(networks))
    return table.calibrated()


def lawful(layer, net, cin, cout):
    return law((20, 0.1, 0.2, 0.005 * (layer + 1)), cin, cout, 8)
