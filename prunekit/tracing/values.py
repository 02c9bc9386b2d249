"""What goes into models and comes out of them: tensors in any nesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.networks.running import each
from prunekit.support.errors import ModelError


def batch_of_two(example: Any) -> Any:
    """Every tensor of the example twice, for norms that want more than one value."""
    return each(example, lambda value: torch.cat([value, value]) if value.ndim else value)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a model's output: any nesting of sequences, dicts and dataclasses."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def comparable(value: Any) -> list[Tensor]:
    """All of a model's output that can be compared, numbers included, as dense real tensors."""
    dense = []
    for leaf in leaves(value):
        if isinstance(leaf, Tensor):
            plain = leaf.dequantize() if leaf.is_quantized else leaf
            plain = plain if plain.layout == torch.strided else plain.to_dense()
            dense.append(torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain)
        elif isinstance(leaf, (bool, int, float)):
            dense.append(torch.tensor(float(leaf)))
    return dense


def leaves(value: Any) -> list[Any]:
    """All tensors, numbers, texts and Nones of a model's output."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, part.name) for part in fields(value) if hasattr(value, part.name)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [leaf for item in value for leaf in leaves(item)]
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return [value]
    raise ModelError(
        f"the model returns a {type(value).__name__}, in which tensors cannot be followed; "
        "return a tensor, tuple, list, dict or dataclass"
    )
