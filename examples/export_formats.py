"""Export: ONNX in fp32, fp16 and int8; each file is compared with PyTorch's outputs."""

import numpy as np
import torch

import prunekit as pk
from prunekit import zoo

torch.manual_seed(0)
model = zoo.build("resnet8").eval()
example = torch.randn(1, 3, 16, 16)
rng = np.random.default_rng(0)
images = [{"input": rng.standard_normal((16, 3, 16, 16), dtype=np.float32)} for _ in range(2)]

for precision in ("fp32", "fp16", "int8"):
    artifact = pk.export(
        model,
        example,
        f"model-{precision}.onnx",
        precision,
        batches=images,  # int8 takes its ranges from them
    )
    print(f"{artifact.path}: outputs {artifact.apart:.1e} apart from PyTorch's")
