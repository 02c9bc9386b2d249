"""What tests of runtimes share."""

import pytest
import torch
from torch import nn

from prunekit.core.artifact import Artifact
from support.engines import NETS


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Name -> (module, artifact), each made once."""
    folder = tmp_path_factory.mktemp("nets")
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            module = NETS[name]().eval()
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_mean.normal_()
                    norm.running_var.uniform_(0.5, 2)
            program = torch.onnx.export(
                module,
                (torch.randn(2, 3, 32, 32),),
                dynamo=True,
                optimize=True,
                verbose=False,
                external_data=False,
                input_names=["input"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            path = folder / f"{name}.onnx"
            program.save(str(path), external_data=False)
            made[name] = (module, Artifact.of_file(path))
        return made[name]

    return make
