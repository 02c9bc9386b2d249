"""What exported files compute."""

from __future__ import annotations

import numpy as np
import onnxruntime


def run(path, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = inputs or {
        i.name: np.random.default_rng(0).standard_normal([2, *i.shape[1:]], dtype=np.float32)
        for i in session.get_inputs()
    }
    return given, session.run(None, given)


def relative(expected, found):
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())
