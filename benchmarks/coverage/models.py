"""The architectures of ``run.py``: what they are, on which input, and what has to be prunable.

Random weights always. Inputs are 128 pixels where the architecture takes that, else its own size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A network: ``SOURCE:NAME``, its input's height and width, and the share required of it.

    ``part`` of a torchvision detector is ``raw``, its backbone and head (what is exported and
    deployed), or ``whole``, with anchors, box decoding and suppression, whose number of outputs
    depends on the image. A whole one is exported where it can be, which is not required.
    """

    spec: str
    size: int = 128
    share: float = 0.9
    part: str = ""

    @property
    def name(self) -> str:
        """The row's name, such as ``torchvision:resnet50`` or ``torchvision:ssd300_vgg16:raw``."""
        return f"{self.spec}:{self.part}" if self.part else self.spec

    @property
    def missing(self) -> str:
        """The package this case needs and that is not installed, or nothing."""
        needed = self.spec.split(":")[0]
        return "" if importlib.util.find_spec(needed) else needed

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` is the row's, its whole spec or the bare name of the network."""
        return name in (self.name, self.spec, self.spec.split(":")[1])


def _cases() -> Iterator[Case]:
    plain = """
        alexnet vgg11_bn vgg16 vgg19 resnet18 resnet50 resnet101 resnext50_32x4d wide_resnet50_2
        densenet121 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large efficientnet_b0
        efficientnet_v2_s regnet_y_400mf regnet_x_400mf squeezenet1_1 mnasnet1_0 googlenet
        inception_v3 fcn_resnet50 deeplabv3_resnet50 lraspp_mobilenet_v3_large
    """
    for name in plain.split():
        yield Case(f"torchvision:{name}")
    yield Case("torchvision:shufflenet_v2_x1_0", share=0.6)
    yield Case("torchvision:convnext_tiny", share=0.4)
    for name in ("vit_b_16", "swin_t"):
        yield Case(f"torchvision:{name}", 224, share=0.4)
    plain = """
        resnet50 mobilenetv4_conv_small efficientnet_lite0 ghostnet_100 hrnet_w18_small repvgg_a0
        mobileone_s0 fastvit_t8
    """
    for name in plain.split():
        yield Case(f"timm:{name}")
    for name in ("cs3darknet_s", "cspresnet50"):
        yield Case(f"timm:{name}", share=0.6)
    yield Case("timm:convnextv2_atto", share=0.4)
    for name in ("deit_tiny", "vit_tiny", "mixer_s16", "swin_tiny"):
        full = {"mixer_s16": "mixer_s16_224", "swin_tiny": "swin_tiny_patch4_window7_224"}
        yield Case(f"timm:{full.get(name, f'{name}_patch16_224')}", 224, share=0.4)
    for part, share in (("raw", 0.9), ("whole", 0.0)):
        yield Case("torchvision:ssdlite320_mobilenet_v3_large", 320, share, part)
        yield Case("torchvision:ssd300_vgg16", 300, share, part)
        yield Case("torchvision:fcos_resnet50_fpn", 128, share, part)
        yield Case("torchvision:retinanet_resnet50_fpn", 128, share, part)
    for name in ("yolov8n", "yolo11n"):
        yield Case(f"ultralytics:{name}", share=0.7)


CASES = {case.name: case for case in _cases()}
"""The 47 of MODELS.md, the four detectors among them once more as a whole, and two of YOLO."""

SUBSET = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:regnet_x_400mf",
    "torchvision:squeezenet1_1",
    "torchvision:lraspp_mobilenet_v3_large",
    "timm:ghostnet_100",
    "timm:cs3darknet_s",
    "timm:deit_tiny_patch16_224",
    "timm:repvgg_a0",
)


class Raw(nn.Module):
    """Backbone and head of a torchvision detector: from the image to raw scores and boxes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, image: Tensor) -> Any:
        features = self.backbone(image)
        return self.head([features] if isinstance(features, Tensor) else list(features.values()))


def build(case: Case, seed: int) -> nn.Module:
    """The network of ``case``, its weights drawn with ``seed``."""
    torch.manual_seed(seed)
    source, name = case.spec.split(":")
    if source == "ultralytics":
        from benchmarks.coverage import yolo

        return yolo.build(name).eval()
    from prunekit.networks.build import build as build_spec

    module: Any = build_spec(case.spec).module
    if case.part == "raw":
        module = Raw(module)
    elif case.part == "whole" and "resnet50" in name:
        module.transform.min_size, module.transform.max_size = (case.size,), case.size
        _freeze_norms(module)
    return module.eval()


def image(case: Case, batch: int, seed: int) -> Tensor:
    """Noise of the size ``case`` takes; a whole detector takes it in place of a list of images."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 3, case.size, case.size, generator=generator)
    return noise.sigmoid() if case.part == "whole" else noise


def _freeze_norms(module: nn.Module) -> None:
    """Frozen norms in place of all others, as torchvision's pretrained detectors have them."""
    from torchvision.ops import FrozenBatchNorm2d

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features, child.eps))


@torch.no_grad()
def enliven_(model: nn.Module, example: Tensor, seed: int) -> None:
    """Make every part of ``model`` matter for its outputs, in place.

    Statistics, scales and shifts of norms, biases and all else that starts out constant become
    random, and every layer's output gets a standard deviation of one. With weights as drawn, deep
    networks fade out: an error in the middle would be invisible in their outputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for module in model.modules():
        mean, var = (getattr(module, f"running_{name}", None) for name in ("mean", "var"))
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean.copy_(0.1 * noise(mean))
            var.copy_(0.75 + 0.2 * noise(var).abs())
        own = [*module.parameters(recurse=False)]
        if type(module).__name__.startswith("Frozen"):
            own += [module.weight, module.bias]  # type: ignore[list-item]
        branch = 0.0 if _is_layer(module) else 0.5  # of a residual branch that starts out closed
        for tensor in own:
            if tensor.numel() < 2 or not tensor.is_floating_point() or tensor.std() > 1e-4:
                continue
            level = float(tensor.mean())
            if level > 1e-3:
                tensor.copy_(level + 0.2 * level * noise(tensor))
            else:
                tensor.copy_(0.1 * noise(tensor) + (branch if tensor.ndim > 1 else 0.0))
    _level_(model, example)


def _level_(model: nn.Module, example: Tensor) -> None:
    levelled = set()

    def level(layer: Any, _: Any, out: Tensor) -> Tensor:
        scale = float(out.std()) if out.numel() > 1 else 1.0
        if layer in levelled or not 1e-6 < scale < 1e6:
            return out
        levelled.add(layer)
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor.div_(scale)
        return out / scale

    hooks = [
        module.register_forward_hook(level)
        for module in model.modules()
        if _is_layer(module) and _is_trained(module)
    ]
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


def _is_trained(layer: Any) -> bool:
    """Not one whose weights mean something, as in YOLO's box decoding."""
    return bool(layer.weight.requires_grad)
