"""Convolutions in bf16 on processors that have no instructions for it, at the speed of fp32.

Mixed precision takes ten times as long as fp32 there. The products of two bf16 numbers are exact in
fp32, and processors with bf16 instructions sum in fp32: operands rounded to bf16, an fp32
convolution, and its result rounded give what they give, but for the order of the sum. The backward
pass follows from autograd, which rounds gradients at the same places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_native = F.conv2d


def emulate_where_slow() -> None:
    """Replace ``torch.nn.functional.conv2d``, for this process, where bf16 has no kernels."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        F.conv2d = _conv2d


def _conv2d(images: Any, weight: Any, /, *rest: Any, **options: Any) -> Any:
    if not torch.is_autocast_enabled("cpu"):
        return _native(images, weight, *rest, **options)
    with torch.autocast("cpu", enabled=False):
        operands = (tensor.to(torch.bfloat16).float() for tensor in (images, weight))
        return _native(*operands, *rest, **options).to(torch.bfloat16)
