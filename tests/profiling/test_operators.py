"""Single operators with the sizes of their layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunekit.core.graph import LayerShape
from prunekit.core.target import Target
from prunekit.profiling.operators import operator
from prunekit.runtimes import runtime_for

SHAPES = [
    LayerShape("conv", (3, 3), (2, 2), (1, 1), 1, (9, 9), (5, 5)),
    LayerShape("conv", (3, 3), (1, 1), (2, 2), 2, (8, 8), (8, 8), ("add", "relu")),
    LayerShape("conv", (1, 1), (1, 1), (1, 1), 1, (8, 8), (8, 8), ("relu",)),
    LayerShape("conv", (7,), (2,), (1,), 1, (20,), (10,)),
    LayerShape("conv", (3, 3, 3), (1, 1, 1), (1, 1, 1), 1, (4, 4, 4), (4, 4, 4)),
    LayerShape("conv", (2, 2), (2, 2), (1, 1), 1, (9, 9), (4, 4)),
    LayerShape("depthwise", (5, 5), (2, 2), (1, 1), 1, (8, 8), (4, 4)),
    LayerShape("transposed", (3, 3), (2, 2), (1, 1), 1, (4, 4), (8, 8)),
    LayerShape("transposed", (2, 2), (2, 2), (1, 1), 1, (4, 4), (8, 8)),
    LayerShape("linear"),
    LayerShape("linear", in_hw=(7,), out_hw=(7,)),
]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_single_operators_have_the_sizes_of_their_layer(shape, runtime: str, tmp_path: Path):
    cin, cout = (8, 8) if shape.kind == "depthwise" else (8, 12)
    target = Target(runtime)
    made = operator(shape, cin, cout, target, runtime == "torch", tmp_path / "o.onnx")
    rng = np.random.default_rng(0)
    sizes = {name: (1, *size[1:]) for name, size in made.input_shapes.items()}
    values = {name: rng.random(size, dtype=np.float32) for name, size in sizes.items()}
    (found,) = runtime_for(target).load(made, target).run(values)
    last = (*shape.out_hw, cout) if shape.kind == "linear" else (cout, *shape.out_hw)
    assert found.shape == (1, *last)
    if "relu" in shape.epilogue:
        assert found.min() == 0
