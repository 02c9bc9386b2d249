"""What an installed package promises: entry points, version, licence, types, extras."""

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import entry_points, metadata, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from prunekit.allocation.solvers import Allocator
from prunekit.criteria import Criterion
from prunekit.runtimes import Runtime
from prunekit.support.registry import Registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_public_names() -> None:
    package = importlib.import_module("prunekit")
    assert set(package.__all__) == set(package._WHERE)
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROTOCOLS = {"runtimes": Runtime, "criteria": Criterion, "allocators": Allocator}
PLUGINS = [
    pytest.param(kind, entry, id=f"{kind}-{entry.name}")
    for kind in PROTOCOLS
    for entry in entry_points(group=f"prunekit.{kind}")
]


def _lacks(item: object, protocol: type) -> list[str]:
    """What of ``protocol`` the object has not: attributes, methods, their parameters."""
    missing = [name for name in protocol.__annotations__ if not hasattr(item, name)]
    for name, wanted in vars(protocol).items():
        if name.startswith("_") or not inspect.isfunction(wanted):
            continue
        found = getattr(item, name, None)
        if not callable(found):
            missing.append(f"{name}()")
            continue
        parameters = list(inspect.signature(wanted).parameters)[1:]
        if list(inspect.signature(found).parameters)[: len(parameters)] != parameters:
            missing.append(f"{name}({', '.join(parameters)})")
    return missing


@pytest.mark.parametrize(("kind", "entry"), PLUGINS)
def test_plugins_are_what_their_protocol_says(kind: str, entry: Any) -> None:
    made = entry.load()()
    assert _lacks(made, PROTOCOLS[kind]) == []
    assert getattr(made, "name", entry.name) == entry.name


def test_a_missing_member_is_seen() -> None:
    class Nothing:
        devices = ("cpu",)

        def solve(self, other: object) -> None: ...

    assert "precisions" in _lacks(Nothing(), Runtime)
    assert _lacks(Nothing(), Allocator) == ["solve(problem)"]


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_installed_entry_points_are_the_declared_ones(kind: str) -> None:
    declared = PROJECT["entry-points"][f"prunekit.{kind}"]
    installed = {entry.name: entry.value for entry in entry_points(group=f"prunekit.{kind}")}
    assert installed.items() >= declared.items()
    assert set(Registry(kind).names()) >= set(declared)


def test_version() -> None:
    assert version("prunekit") == PROJECT["version"]
    shown = subprocess.run(
        [sys.executable, "-m", "prunekit", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"prunekit {PROJECT['version']}\n"
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_licence() -> None:
    assert metadata("prunekit")["License-Expression"] == "Apache-2.0"
    assert metadata("prunekit").get_all("License-File") == ["LICENSE"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_types_are_shipped() -> None:
    assert files("prunekit").joinpath("py.typed").is_file()


def test_extras() -> None:
    assert set(metadata("prunekit").get_all("Provides-Extra") or ()) >= {
        "dev",
        "digits",
        "openvino",
        "tensorrt",
        "timm",
    }


def test_the_command_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="prunekit")
    assert callable(script.load())
