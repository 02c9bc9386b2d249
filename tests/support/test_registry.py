"""Plugins by name: built in, registered, and from a third party's package."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from prunekit.criteria import Magnitude, Taylor
from prunekit.support import registry
from prunekit.support.errors import UsageError
from prunekit.support.registry import Registry


def pretend(monkeypatch, *entries):
    def found(group):
        return [EntryPoint(name, value, group) for name, value in entries]

    monkeypatch.setattr(registry, "entry_points", found)
    return Registry("criteria")


def test_the_built_in_ones():
    assert {"magnitude", "taylor"} <= set(registry.criteria.names())
    assert registry.criteria.get("taylor") is Taylor
    assert registry.allocators.names() == sorted(registry.allocators.names())
    assert {"joint", "knapsack"} <= set(registry.allocators.names())
    assert {"fake", "onnxruntime", "torch"} <= set(registry.runtimes.names())


def test_unknown_names_list_the_known(monkeypatch):
    plugins = pretend(monkeypatch, ("b", "x:B"), ("a", "x:A"))
    with pytest.raises(UsageError, match="unknown criteria name 'c'; known: a, b"):
        plugins.get("c")


def test_a_name_is_registered_once(monkeypatch):
    plugins = pretend(monkeypatch, ("taken", "prunekit.criteria:Taylor"))
    plugins.register("mine", Magnitude)
    assert plugins.names() == ["mine", "taken"]
    assert plugins.get("mine") is Magnitude
    for name in ("mine", "taken"):
        with pytest.raises(UsageError, match=f"the criteria name '{name}' is already registered"):
            plugins.register(name, Taylor)


def test_two_packages_with_one_name_are_an_error(monkeypatch):
    plugins = pretend(monkeypatch, ("same", "a:A"), ("other", "c:C"), ("same", "b:B"))
    for ask in (plugins.names, lambda: plugins.get("other")):
        with pytest.raises(UsageError, match=r"two installed packages register .* name 'same'"):
            ask()


@pytest.mark.parametrize("value", ["no_such_package:Thing", "prunekit.criteria:Nothing"])
def test_a_broken_package_is_named_when_asked_for_and_only_then(monkeypatch, value):
    plugins = pretend(monkeypatch, ("broken", value), ("good", "prunekit.criteria:Taylor"))
    assert plugins.names() == ["broken", "good"]
    assert plugins.get("good") is Taylor
    with pytest.raises(UsageError, match=f"'broken' is registered as {value}, which cannot be"):
        plugins.get("broken")


def test_a_third_partys_package(tmp_path):
    """For real: a package on the path with an entry point of its own."""
    package = tmp_path / "thirdparty"
    package.mkdir()
    (package / "__init__.py").write_text("class Mine:\n    name = 'mine'\n")
    metadata = tmp_path / "thirdparty-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[prunekit.criteria]\nmine = thirdparty:Mine\n")
    code = (
        "from prunekit.support.registry import criteria; import sys\n"
        "assert 'thirdparty' not in sys.modules\n"
        "print(criteria.names(), criteria.get('mine').name)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert "'mine'" in out.stdout
    assert "'taylor'" in out.stdout
    assert out.stdout.strip().endswith("mine")
