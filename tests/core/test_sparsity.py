"""Which weights of a network are kept, on disk."""

import pytest

from prunekit.core.sparsity import SparseLayer, SparsityPlan
from prunekit.support.errors import FileError


def test_plan_on_disk(tmp_path):
    layers = (SparseLayer("a", (2, 4), 8, dense=True), SparseLayer("b", (4, 8), 16))
    plan = SparsityPlan(layers, "2:4", "2:4", "static", "magnitude")
    assert (plan.sparsity, plan.overall) == (0.5, 0.4)
    path = tmp_path / "sparsity.json"
    plan.save(path)
    assert SparsityPlan.load(path) == plan
    path.write_text(path.read_text().replace('"kept": 16', '"kept": 17'))
    with pytest.raises(FileError, match="was edited or damaged"):
        SparsityPlan.load(path)
    SparsityPlan((SparseLayer("b", (4, 8), 33),), "2:4", "2:4", "static", "magnitude").save(path)
    with pytest.raises(FileError, match="'b' keeps weights it does not have"):
        SparsityPlan.load(path)
