"""torchvision's detectors as plain networks: the same objects, the same losses, the same names."""

from functools import cache

import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection.ssd import SSD

from prunekit import zoo
from prunekit.networks.build import build
from prunekit.networks.detectors import IMAGENET, OneStageDetector, plain_detector
from prunekit.tasks import detections

SIZE = 96
ALIKE = {"min_size": SIZE, "max_size": SIZE, "weights": None, "weights_backbone": None}
MAKERS = {
    "ssd300_vgg16": lambda: detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=4
    ),
    "ssdlite320": lambda: detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    ),
    "retinanet": lambda: detection.retinanet_resnet50_fpn(num_classes=3, **ALIKE),
    "fcos": lambda: detection.fcos_resnet50_fpn(num_classes=3, **ALIKE),
}
TARGETS = [
    {"boxes": torch.tensor([[4.0, 6, 60, 70], [30, 20, 90, 50]]), "labels": torch.tensor([2, 0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


@cache
def detector(name):
    torch.manual_seed(0)
    return MAKERS[name]().eval()


def size_of(name):
    return {"ssd300_vgg16": 300, "ssdlite320": 320}.get(name, SIZE)


def pictures(name):
    size = size_of(name)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    return images, (images - mean) / spread


@pytest.mark.parametrize("name", MAKERS)
def test_it_sees_what_torchvision_s_sees(name):
    whole = detector(name)
    # what both leave out at the end differs: here 0.01, 0.45 and 100
    whole.score_thresh, whole.nms_thresh, whole.detections_per_img = 0.01, 0.45, 100
    whole.topk_candidates = 10**6
    images, normalised = pictures(name)
    with torch.no_grad():
        expected = whole(list(images))
        outputs = plain_detector(whole)(normalised)
    assert outputs["boxes"].min() >= 0
    assert outputs["boxes"].max() <= size_of(name)
    for boxes, scores, theirs in zip(outputs["boxes"], outputs["scores"], expected, strict=True):
        assert len(theirs["boxes"])
        close = (theirs["boxes"][:, None] - boxes).abs().amax(-1).min(1)
        assert close.values.max() < 1e-2
        background = int(isinstance(whole, SSD))
        for where, label, score in zip(
            close.indices, theirs["labels"] - background, theirs["scores"], strict=True
        ):
            near = (boxes - boxes[where]).abs().amax(1) < 1e-2
            assert float((scores[near, label] - score).abs().min()) < 1e-4


@pytest.mark.parametrize("name", MAKERS)
def test_its_losses_are_torchvision_s(name):
    whole = detector(name)
    images, normalised = pictures(name)
    background = int(isinstance(whole, SSD))
    labelled = [{**t, "labels": t["labels"] + background} for t in TARGETS]
    mine = plain_detector(whole)
    modes = {module: module.training for module in whole.modules()}
    try:
        whole.train()
        for module in whole.modules():  # whose batches of two would give other statistics
            if isinstance(module, torch.nn.modules.batchnorm._NormBase | torch.nn.Dropout):
                module.eval()
        expected = whole(list(images), labelled)
        losses, outputs = mine(normalised, TARGETS)
    finally:
        for module, mode in modes.items():
            module.training = mode
    assert losses.keys() == expected.keys()
    for key, loss in expected.items():
        assert float(losses[key].detach()) == pytest.approx(
            float(loss.detach()), rel=1e-3, abs=1e-5
        )
    assert set(outputs) == {"boxes", "scores"}


@pytest.mark.parametrize("name", MAKERS)
def test_weights_keep_torchvision_s_names(name):
    whole = detector(name)
    assert plain_detector(whole).state_dict().keys() == whole.state_dict().keys()


def test_a_name_is_built_as_a_plain_network():
    module = build("torchvision:ssdlite320_mobilenet_v3_large", num_classes=5).module
    assert isinstance(module, OneStageDetector)
    assert module.eval()(torch.zeros(1, 3, 320, 320))["scores"].shape[-1] == 5


def test_others_are_left_as_they_are():
    module = torch.nn.Linear(2, 2)
    assert plain_detector(module) is module


def test_a_copy_lends_from_its_own(tmp_path):
    import copy

    module = build("zoo:ssd_resnet8", num_classes=3).module.eval()
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    first, second = (m(image, TARGETS[:1])[0]["classification"] for m in (module, other))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "size", "maps"), [("ssd_resnet8", 128, 4), ("ssd_resnet50", 512, 7)]
)
def test_the_zoo_s_detectors_have_maps_of_many_sizes(name, size, maps):
    with torch.device("meta"):
        whole = zoo.build(name, num_classes=3).eval()
    features = whole.backbone(torch.zeros(1, 3, size, size, device="meta"))
    sizes = [feature.shape[-1] for feature in features.values()]
    assert sizes == [size // 8 >> number for number in range(maps)]


def test_overlaps_go_within_a_class_only():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]])
    scores = torch.tensor([[[0.9, 0.0], [0.8, 0.7], [0.005, 0.6]]])
    (found,) = detections(boxes, scores)
    assert found["labels"].tolist() == [0, 1, 1]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6])
