"""Tables that the checkout and the package ship."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from prunekit.latency import LatencyTable
from prunekit.latency.shipped import shipped_tables
from support.commands import ON_FAKE, Says


def test_shipped_tables_are_found_by_name(prunekit: Says, home: Path, monkeypatch):
    folder = home / "shipped"
    folder.mkdir()
    shutil.copy(home / "table.json", folder / "tiny-fake.json")
    monkeypatch.setattr("prunekit.latency.shipped.FOLDERS", (home / "nowhere", folder))
    status, out, _ = prunekit("table", "list")
    assert status == 0
    assert "tiny-fake" in out
    assert "fake device" in out
    status, out, _ = prunekit("table", "list", "--json")
    assert list(json.loads(out)) == ["tiny-fake"]
    for name in ("tiny-fake", "tiny-fake.json"):
        assert prunekit("table", "show", name)[0] == 0
    command = ("prune", "net.py:tiny", *ON_FAKE, "--epochs", 0, "--target-latency", "70%")
    assert prunekit(*command, "--table", "tiny-fake", "-o", "new")[0] == 0
    status, _, err = prunekit("table", "show", "other")
    assert status == 2
    assert err.startswith("prunekit: cannot read latency table other")


def test_no_layer_of_a_table_in_the_checkout_is_free_however_narrow():
    for path in shipped_tables():
        table = LatencyTable.load(path)
        for entry in table.entries:
            calls = {(1, 1), *((s.cin, s.cout) for s in entry.samples)}
            assert table.shape_us(entry.shape, *np.array([*calls]).T).min() > 0, path.name


def test_tables_in_the_checkout_can_be_read():
    for path in shipped_tables():
        table = LatencyTable.load(path)
        assert table.calibration.nets, path.name
        assert table.environment.device_name, path.name
