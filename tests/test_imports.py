"""What an import brings in: the data half and the package's front door do without torch."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import prunekit as pk
from support.commands import python


@pytest.mark.parametrize(
    "code",
    [
        "import prunekit; dir(prunekit)",
        "from prunekit.cli.main import run; run(['--help'])",
        "from prunekit.cli.main import run; run(['prune', '--help'])",
    ],
)
def test_torch_is_not_imported(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'onnx', 'onnxruntime', 'scipy', 'accelerate'}"
    assert python(f"{code}\nimport sys; print(sorted({heavy} & {{*sys.modules}}))").endswith("[]")


DATA_HALF = ("core", "support", "allocation", "allocation/solvers", "latency", "report")


def imported(code):
    script = f"import sys\n{code}\nprint([m for m in sys.modules if m.startswith('torch')])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1].replace("'", '"'))


def test_the_data_half_does_without_torch():
    import prunekit

    names = [
        f"prunekit.{room.replace('/', '.')}.{module.name}"
        for room in DATA_HALF
        for module in pkgutil.iter_modules([f"{prunekit.__path__[0]}/{room}"])
    ]
    assert len(names) > 50
    code = "\n".join(f"import {name}" for name in ["prunekit", "prunekit.cli.main", *names])
    assert imported(code) == []


def test_the_import_is_lazy_and_complete():
    assert imported("import prunekit; prunekit.Budget.parse('50%'); dir(prunekit)") == []
    assert len(pk.__all__) == len(set(pk.__all__))
    for name in pk.__all__:
        assert getattr(pk, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = pk.nope
