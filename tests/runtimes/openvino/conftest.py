"""What tests of OpenVINO share."""

from __future__ import annotations

import pytest
import torch

import prunekit as pk
from support.nets import (
    image,
    randomise,
)
from support.openvino import NETS


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name -> (module, example, artifact), each made once."""
    folder = tmp_path_factory.mktemp("openvino")
    made = {}

    def make(name):
        if name not in made:
            module = randomise(NETS[name]())
            example = torch.randn(1, 5, 6) if name == "Tokens" else image()
            made[name] = module, example, pk.export(module, example, folder / f"{name}.onnx")
        return made[name]

    return make
