"""Sparse weights in files: patterns checked, renamed weights followed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import prunekit as pk
from prunekit.exporting.sparse import check_pattern, export_sparse


def test_an_exporter_that_renames_weights_is_followed(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    schedule = pk.sparsify.SparsitySchedule(1)
    sparse = pk.sparsify.Static(model, pattern="2:4", schedule=schedule, dense=())
    example = torch.randn(2, 5, 16)
    made = export_sparse(model, example, tmp_path / "tokens.onnx", sparse.plan)
    assert check_pattern(onnx.load(made.path), model, sparse.plan) == 2


def test_a_sparse_weight_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    class Standardised(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True))

    model = torch.nn.Sequential(torch.nn.Linear(16, 16), Standardised(16, 8))
    schedule = pk.sparsify.SparsitySchedule(1)
    sparse = pk.sparsify.Static(model, 0.5, schedule, dense=("0",))
    with pytest.raises(pk.PrunekitError, match=r"1 \(Standardised\) computes with values worked"):
        export_sparse(model, torch.randn(1, 16), tmp_path / "x.onnx", sparse.plan)
    assert not [*tmp_path.iterdir()]
    plain = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 8))
    sparse = pk.sparsify.Static(plain, pattern="2:4", schedule=schedule)
    made = onnx.load(
        export_sparse(plain, torch.randn(1, 16), tmp_path / "x.onnx", sparse.plan).path
    )
    for tensor in made.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(tensor.dims, np.float32), "gone"))
    with pytest.raises(pk.PrunekitError, match=r"1 of 1 .* \(1 is the first\).*\(--dense 1\)"):
        check_pattern(made, plain, sparse.plan)
