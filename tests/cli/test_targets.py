"""What `prunekit targets` lists."""

import json

from support.commands import Says


def test_targets(prunekit: Says) -> None:
    status, out, _ = prunekit("targets", "--json")
    rows = {row["target"]: row for row in json.loads(out)["targets"]}
    assert status == 0
    assert {"fake:cpu", "onnxruntime:cpu", "torch:cpu"} <= set(rows)
    for row in rows.values():
        assert bool(row["reason"]) != row["available"]
        assert (row["environment"] is not None) == row["available"]
    _, out, _ = prunekit("targets")
    for name in rows:
        assert name in out
