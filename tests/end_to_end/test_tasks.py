"""The whole job for every task, on data of one's own: scored, trained, judged on the file."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

import prunekit as pk

MINE = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

def parts(inputs, targets):
    return TensorDataset(inputs[:24], targets[:24]), TensorDataset(inputs[24:], targets[24:])

def pictures(input_shape, seed):
    return torch.randn(36, *input_shape, generator=torch.Generator().manual_seed(seed))

def masks(input_shape, seed):
    images = pictures(input_shape, seed)
    return parts(images, (images.mean(1) > 0).long())

def tags(input_shape, seed):
    images = pictures(input_shape, seed)
    return parts(images, (images.mean((2, 3)) > 0).float())

def numbers(input_shape, seed):
    images = pictures(input_shape, seed)
    return parts(images, images.mean((1, 2, 3)))

def tokens(input_shape, seed):
    ids = torch.randint(20, (36, *input_shape), generator=torch.Generator().manual_seed(seed))
    return parts(ids, (ids.float().mean(1) > 9.5).long())

class Squares(Dataset):
    classes = ["square"]
    def __init__(self, shape, count): self.shape, self.count = shape, count
    def __len__(self): return self.count
    def __getitem__(self, index):
        image, at = torch.zeros(self.shape), 4 * (index % 6)
        image[:, at : at + 24, 8:32] = 2.0
        box = [[8.0, at, 32.0, at + 24.0]]
        return image, {"boxes": torch.tensor(box), "labels": torch.tensor([0])}

def squares(input_shape, seed): return Squares(input_shape, 24), Squares(input_shape, 6)

class Pairs(Dataset):
    def __init__(self, named, images):
        self.named, self.images = named, images
    def __len__(self): return len(self.images)
    def __getitem__(self, index):
        image, other = self.images[index], self.images[index - 1]
        same = int((image.mean() > 0) == (other.mean() > 0))
        return ({"right": other, "left": image} if self.named else (image, other)), same

def pairs(input_shape, seed):
    images = pictures(input_shape, seed)
    return Pairs(False, images[:24]), Pairs(False, images[24:])

def named(input_shape, seed):
    images = pictures(input_shape, seed)
    return Pairs(True, images[:24]), Pairs(True, images[24:])

def body(channels, ending):
    first = [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    second = [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*first, *second, *ending)

def pixels(num_classes): return body(32, [nn.Conv2d(32, num_classes, 1)])

def whole(num_classes):
    return body(32, [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes)])

class Words(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.e, self.a = nn.Embedding(20, 64), nn.Linear(64, 4096)
        self.b = nn.Linear(4096, num_classes)
    def forward(self, ids): return self.b(self.a(self.e(ids)).relu().mean(1))

def words(num_classes): return Words(num_classes)

class Both(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = whole(8), nn.Linear(8, num_classes)
    def forward(self, left, right): return self.head((self.body(left) - self.body(right)).abs())

def both(num_classes): return Both(num_classes)
"""
IMAGE = "1x3x8x8"
CASES = {
    "segmentation": ("pixels", "masks", IMAGE, "mean IoU"),
    "multilabel": ("whole", "tags", IMAGE, "mean average precision"),
    "regression": ("whole", "numbers", IMAGE, "mean absolute error"),
    "token ids": ("words", "tokens", "1x6:int64<20", "top-1"),
    "two inputs": ("both", "pairs", f"{IMAGE},{IMAGE}", "top-1"),
    "two inputs by name": ("both", "named", f"left={IMAGE},right={IMAGE}", "top-1"),
}
FAKE = ("--from-scratch", "--batch-size", "4", "--target", "fake", "--measure-seconds", "1")
PRUNED = (*FAKE, "--target-latency", "75%", "--profile-nets", "4")
SHORT = (*PRUNED, "--epochs", "1")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_a_task_from_data_to_report(mine, prunekit, case):
    net, data, inputs, metric = CASES[case]
    arguments = ("prune", f"mine.py:{net}", "--data", f"mine.py:{data}", "--input", inputs)
    status, _, err = prunekit(*arguments, *SHORT, "-o", "run", "-q")
    assert status == 0, err
    report = json.loads((mine / "run/report.json").read_text())
    accuracy = report["accuracy"]
    assert accuracy["metric"] == metric
    assert None not in (accuracy["dense"], accuracy["pruned"])
    page = (mine / "run/report.html").read_text()
    assert all(other["metric"] in page for other in (accuracy, *accuracy["others"]))


def test_the_metric_is_that_of_the_file(mine, prunekit):
    arguments = ("prune", "mine.py:whole", "--data", "mine.py:numbers", "--input", IMAGE)
    assert prunekit(*arguments, *SHORT, "-o", "run", "-q")[0] == 0
    images = torch.randn(36, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = images.mean((1, 2, 3))[24:].numpy()
    session = onnxruntime.InferenceSession(mine / "run/model.onnx")
    (outputs,) = session.run(None, {"input": images[24:].numpy()})
    report = json.loads((mine / "run/report.json").read_text())
    expected = np.abs(outputs[:, 0] - targets).mean()
    assert report["accuracy"]["pruned"] == pytest.approx(float(expected), rel=1e-4)
    lines = [json.loads(line) for line in (mine / "run/log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "score" in line]
    assert {line["metric"] for line in scored} == {"mae"}
    assert report["epochs"][-1]["score"] == scored[-1]["score"]


@pytest.mark.parametrize("method", ["halp", "oneshot", "iee"])
def test_methods_and_a_teacher_follow_the_task(mine, prunekit, method):
    arguments = ("prune", "mine.py:pixels", "--data", "mine.py:masks", "--input", IMAGE)
    more = ("--method", method, *(() if method == "iee" else ("--distill", "0.5")))
    assert prunekit(*arguments, *PRUNED, "--epochs", "2", *more, "-o", "run", "-q")[0] == 0


def test_a_detector_from_data_to_boxes_of_the_file(mine, prunekit):
    arguments = ("prune", "zoo:ssd_resnet8", "--data", "mine.py:squares", "--input", "1x3x64x64")
    more = ("--epochs", "1", "--batch-size", "8", "--distill", "0.2", "-o", "run", "-q")
    status, _, err = prunekit(*arguments, *PRUNED, *more)
    assert status == 0, err
    accuracy = json.loads((mine / "run/report.json").read_text())["accuracy"]
    assert (accuracy["task"], accuracy["metric"]) == ("detection", "COCO mAP")
    session = onnxruntime.InferenceSession(mine / "run/model.onnx")
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores"]
    image = torch.zeros(1, 3, 64, 64)
    image[..., 8:32, 8:32] = 2.0
    small = pk.load(mine / "run")
    with torch.no_grad():
        expected = small(image)
    boxes, scores = session.run(None, {"input": image.numpy()})
    assert np.abs(boxes - expected["boxes"].numpy()).max() < 1e-2
    assert np.abs(scores - expected["scores"].numpy()).max() < 1e-4


def test_weights_become_sparse_for_any_task(mine, prunekit):
    arguments = ("sparsify", "mine.py:pixels", "--data", "mine.py:masks", "--input", IMAGE)
    more = ("--epochs", "2", "--option", "every=2", "-o", "sparse", "-q")
    status, _, err = prunekit(*arguments, *FAKE, "--method", "gmp", *more)
    assert status == 0, err
    assert "mean IoU" in (mine / "sparse/report.html").read_text()


@pytest.mark.parametrize(
    ("net", "data", "flags", "message"),
    [
        ("whole", "masks", (), "(batch, 2 classes, height, width) logits are needed for segment"),
        ("pixels", "tags", (), "(batch, classes) logits are needed"),
        ("whole", "squares", (), "for detection it is `boxes` (batch, places, 4) and `scores`"),
        ("whole", "numbers", ("--metric", "map"), "`metric` 'map' is none of regression; metrics"),
        ("whole", "numbers", ("--task", "depth"), "unknown tasks name 'depth'; known: classif"),
        ("whole", "tags", ("--class-weights", "1"), "`class_weights` has 1 values; one above 0 f"),
        ("pixels", "masks", ("--label-smoothing", "0.1"), "`label_smoothing` is for classificat"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    mine, prunekit, net, data, flags, message
):
    arguments = ("prune", f"mine.py:{net}", "--data", f"mine.py:{data}", "--input", IMAGE)
    status, _, err = prunekit(*arguments, *SHORT, *flags, "-o", "run", "-q")
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (mine / "run").exists()


def test_task_settings_need_data(prunekit, mine):
    arguments = ("prune", "mine.py:whole", "--input", IMAGE, "--epochs", "0", "--metric", "f1")
    status, _, err = prunekit(*arguments, "--target", "fake", "-o", "run")
    assert (status, err.splitlines()[0]) == (
        2,
        "prunekit: --metric needs data; add --data (digits, imagefolder:PATH, ...)",
    )


def test_a_file_exported_later_is_judged_by_the_run_s_task(mine, prunekit):
    arguments = ("prune", "mine.py:whole", "--data", "mine.py:tags", "--input", IMAGE)
    assert prunekit(*arguments, *SHORT, "-o", "run", "-q")[0] == 0
    more = ("--precision", "fp16", "--data", "mine.py:tags", "--base", "mine.py:whole")
    status, _, err = prunekit("export", "run", *more)
    assert status == 0, err
    part = json.loads((mine / "run/report.json").read_text())["exports"][-1]
    pruned = json.loads((mine / "run/report.json").read_text())["accuracy"]["pruned"]
    assert part["accuracy"] == pytest.approx(pruned, abs=0.1)
