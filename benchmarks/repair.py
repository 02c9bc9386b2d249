"""What a pruned network is worth before it is trained: right after slimming, and repaired.

Fashion-MNIST's original files (Debian's package dataset-fashion-mnist) and, where it is given,
MobileNet-V2 with ImageNet's weights (torchvision's mobilenet_v2-b0353104.pth). Costs are MACs.
Every result is kept at once, so that the same command goes on where it stopped:

    python benchmarks/repair.py --fashion FOLDER [--mobilenet FILE.pth] [--minutes 45]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, code
from torch import Tensor, nn

import prunekit as pk
from prunekit import zoo
from prunekit.networks.weights import check_fit, load_weights, read_weights, take_state
from prunekit.support.files import sha256_file
from prunekit.train import TrainConfig, fit, load_data

NAME = "repair"
SHAPE = (1, 28, 28)
BUDGETS = ("75%", "50%", "30%")
DENSE_EPOCHS, EPOCHS, IMAGES = 5, 3, 1024
FINE_TUNED = {
    "resnet8": [("magnitude", b) for b in BUDGETS] + [("taylor", b) for b in BUDGETS]
    + [("reconstruction", b) for b in BUDGETS],
    "resnet20": [("reconstruction", "50%"), ("taylor", "50%"), ("magnitude", "50%"),
                 ("reconstruction", "30%")],
}  # fmt: skip
PHOTOS = (
    *("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina"),
    "immunohistochemistry",
)
MOBILENET_SHA256 = "b0353104"


class Results:
    """The JSON file, written after every entry."""

    def __init__(self, minutes: float) -> None:
        self.path = RESULTS / f"{NAME}.json"
        self.entries: dict[str, Any] = (
            json.loads(self.path.read_text()) if self.path.is_file() else {}
        )
        self.until = time.monotonic() + 60 * minutes

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The entry called ``key``, computed where it is not there and time is left."""
        if key not in self.entries:
            if time.monotonic() > self.until:
                raise SystemExit(f"time is up before {key}; the same command goes on")
            self.entries[key] = compute()
            RESULTS.mkdir(exist_ok=True)
            self.path.write_text(json.dumps(self.entries, indent=1) + "\n")
            print(key, json.dumps(self.entries[key]), flush=True)
        return self.entries[key]


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    right = [
        (net(x).argmax(1) == y).sum()
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return round(float(sum(right)) / len(labels), 4)


def stacked(dataset: Any, count: int) -> tuple[Tensor, Tensor]:
    pairs = [dataset[index] for index in range(count)]
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def criteria(net: nn.Module, graph: Any, images: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Scores by name; Taylor's from labels, where there are some."""
    batches = images.split(128)
    made = {
        "magnitude": pk.score(net, graph, pk.Magnitude()),
        "activation": pk.score(net, graph, pk.Activation(), batches=batches),
        "reconstruction": pk.score(net, graph, pk.Reconstruction(), batches=batches),
    }
    if labels is not None:
        pairs = list(zip(batches, labels.split(128), strict=True))
        made["taylor"] = pk.score(net, graph, pk.Taylor(), loss_of, pairs)
    return made


def loss_of(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def repairs(
    net: nn.Module, plan: Any, images: Tensor, judge: Callable[[nn.Module], float]
) -> dict[str, Any]:
    """Right after slimming and after every repair: what ``judge`` says, distance and seconds."""
    small = pk.slim(net, plan)
    rows: dict[str, Any] = {"slim": {"score": judge(small)}}
    started = time.perf_counter()
    free = pk.repair(net, small, plan, example=images[:1])
    rows["bias without data"] = {
        "score": judge(free.network),
        "seconds": round(time.perf_counter() - started, 2),
        "left": len(free.left),
    }
    for method in ("norms", "bias", "least-squares", "auto"):
        fixed = pk.repair(net, small, plan, [images], method=method)
        rows[method] = {
            "score": judge(fixed.network),
            "chosen": fixed.method,
            "images": fixed.images,
            "distance": [round(fixed.before, 4), round(fixed.after, 4)],
            "seconds": round(fixed.seconds, 2),
        }
    return rows


def fashion(results: Results, folder: Path, work: Path, names: list[str]) -> None:
    data = load_data(f"fashionmnist:{folder}", SHAPE)
    images, labels = stacked(data.train, IMAGES)
    val_images, val_labels = stacked(data.val, 10_000)

    def judge(net: nn.Module) -> float:
        return accuracy(net, val_images, val_labels)

    for name in names:
        torch.manual_seed(0)
        net, weights = zoo.build(name, 10, 1), work / f"{name}.safetensors"
        if not weights.is_file():
            from safetensors.torch import save_file

            fit(net, data, TrainConfig(epochs=DENSE_EPOCHS))
            save_file(net.state_dict(), weights)
        load_weights(net.eval(), weights)
        results.once(f"{name} dense", lambda net=net: {"score": judge(net), "epochs": DENSE_EPOCHS})
        graph = pk.trace(net, torch.zeros(1, *SHAPE))
        scores = criteria(net, graph, images, labels)
        for budget in BUDGETS:
            for criterion in scores:
                plan = pk.allocate(graph, scores[criterion], None, macs(budget)).plan
                results.once(
                    f"{name} {criterion} {budget}",
                    lambda net=net, plan=plan: repairs(net, plan, images, judge),
                )
        for criterion, budget in FINE_TUNED.get(name, []):
            plan = pk.allocate(graph, scores[criterion], None, macs(budget)).plan
            key = f"{name} {criterion} {budget} trained"
            results.once(key, lambda net=net, plan=plan: tuned(net, plan, data, images, judge))


def macs(budget: str) -> Any:
    return pk.Budget.parse(f"macs={budget}")


def tuned(net: nn.Module, plan: Any, data: Any, images: Tensor, judge: Any) -> dict[str, Any]:
    """One epoch and all, from the slim network and from the repaired one: equal training."""
    rows = {}
    small = pk.slim(net, plan)
    starts = {"slim": small, "repaired": pk.repair(net, small, plan, [images]).network}
    for start, network in starts.items():
        scores: list[float] = []
        config = TrainConfig(epochs=EPOCHS, lr=0.02)  # a fifth: the weights are good already
        ended = fit(network, data, config, log=lambda row, s=scores: s.append(row.get("accuracy")))
        rows[start] = {
            "first epoch": scores[0], "score": judge(network), "seconds": round(ended.seconds, 1)
        }  # fmt: skip
    return rows


def natural_crops() -> tuple[Tensor, Tensor]:
    """Crops of the photographs that scikit-image and scikit-learn ship: to fit to, to judge by.

    No photograph is in both.
    """
    from sklearn.datasets import load_sample_images
    from torchvision.transforms import v2

    photos = [photo.copy() for photo in load_sample_images().images]
    try:
        from skimage import data as shipped

        photos += [getattr(shipped, n)().copy() for n in PHOTOS]
    except (ImportError, OSError) as error:
        print(f"without scikit-image's photographs: {error}")
    torch.manual_seed(0)
    crop = v2.Compose(
        [
            *(
                v2.ToImage(),
                v2.RandomResizedCrop(224, scale=(0.05, 0.6)),
                v2.RandomHorizontalFlip(),
            ),
            *(v2.ToDtype(torch.float32, scale=True),),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    parts = photos[::2], photos[1::2]
    fitted, judged = (
        torch.stack([crop(part[i % len(part)]) for i in range(128)]) for part in parts
    )
    print(f"{len(photos)} photographs, {len(parts[1])} of them to judge by")
    return fitted, judged


def mobilenet(results: Results, path: Path) -> None:
    import torchvision

    if not sha256_file(path).startswith(MOBILENET_SHA256):
        raise SystemExit(f"{path} is not torchvision's mobilenet_v2-{MOBILENET_SHA256}.pth")
    net = torchvision.models.mobilenet_v2().eval()
    state = read_weights(path, net)
    check_fit(net, state, path)
    take_state(net, state)
    fitted, judged = natural_crops()
    with torch.no_grad():
        right = net(judged).argmax(1)
    results.once("mobilenet_v2 classes", lambda: {"among crops": len(set(right.tolist()))})
    graph = pk.trace(net, torch.zeros(1, 3, 224, 224))
    scores = criteria(net, graph, fitted, None)
    for budget in ("75%", "60%"):
        for criterion in scores:
            plan = pk.allocate(graph, scores[criterion], None, macs(budget), granularity=8).plan
            results.once(
                f"mobilenet_v2 {criterion} {budget}",
                lambda plan=plan: repairs(net, plan, fitted, lambda n: accuracy(n, judged, right)),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--mobilenet", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/repair"))
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--nets", default="resnet8,resnet20")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    results = Results(given.minutes)
    results.once("code", code)
    results.once("environment", lambda: environment())
    if given.mobilenet is not None:
        mobilenet(results, given.mobilenet)
    if given.fashion is not None:
        fashion(results, given.fashion, given.work, given.nets.split(","))


def environment() -> dict[str, Any]:
    """Versions; the machine is of no matter, as nothing here is a latency."""
    return {"torch": torch.__version__, "threads": 1, "costs": "MACs"}


if __name__ == "__main__":
    main()
