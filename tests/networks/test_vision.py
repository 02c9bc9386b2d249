"""torchvision is imported without PyTorch's compiler, and is whole all the same."""

from support.commands import python

COMPILER = "import sys; print('torch._dynamo' in sys.modules)"


def test_the_compiler_is_not_imported():
    code = f"""
from prunekit.networks.build import build
build("torchvision:mobilenet_v2")
{COMPILER}
"""
    assert python(code).endswith("False")


def test_the_operator_that_wants_the_compiler_gets_it():
    code = """
from prunekit.networks.vision import torchvision
supported = torchvision().ops.roi_align.__globals__["is_compile_supported"]("cpu")
import torch._dynamo.utils as utils
print(supported == utils.is_compile_supported("cpu"))
"""
    assert python(code).endswith("True")
