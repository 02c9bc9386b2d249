"""What engines of TensorRT are compared with."""

from __future__ import annotations

import torch

from prunekit.core.target import Target

FP32 = Target("tensorrt", "cuda", batch=2)


def expected(net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()
