"""Reports with every part, and what can be read off their pages."""

from html.parser import HTMLParser

from prunekit.core.target import Environment, Target
from prunekit.report import Report, to_html
from prunekit.report.schema import (
    AccuracyPart,
    AllocationPart,
    AttemptPart,
    BudgetPart,
    EpochPart,
    LatencyPart,
    Pair,
    TablePart,
    TrainingPart,
    UpdatePart,
)

SMALL = {
    "layer1.0.conv1": (64, 32),
    "layer1.1.conv1": (64, 24),
    "layer2.0.conv1": (128, 72),
    "layer2.1.conv1": (128, 128),
    "layer3.0.conv1": (256, 96),
    "layer3.1.conv1": (256, 8),
    "layer4.0.conv1": (512, 136),
}


def make_report(
    *, met=True, accuracy=(0.9312, 0.9287), widths=None, model="zoo:resnet20_w32", **changes
):
    """A finished run as it comes out of the pipeline."""
    ratio, ends = (0.4912, (0.4871, 0.4955)) if met else (0.5377, (0.5301, 0.5460))
    parts = {
        "model": model,
        "target": Target("onnxruntime", "cpu", "fp32", 1, 2),
        "environment": Environment(
            device_name="Example CPU @ 2.40GHz (family 6 model 143)",
            runtime_version="onnxruntime 1.23.2",
            machine="x86_64",
            cores=2,
            isa=("avx2", "avx512f", "avx512_vnni"),
            os="Linux 6.8",
            python="3.12.4",
            packages={"numpy": "2.2.1"},
            created="2025-11-03T09:30:00Z",
        ),
        "budget": BudgetPart(kind="latency", requested="50%", limit_ms=4.1075),
        "latency": LatencyPart(
            dense_ms=8.215,
            pruned_ms=8.215 * ratio,
            dense_ci_ms=(8.19, 8.242),
            pruned_ci_ms=(8.19 * ratio, 8.242 * ratio),
            ratio=ratio,
            ratio_ci=ends,
            confidence=0.95,
            rounds=120,
            predicted_ms=4.211,
            limit_ratio=0.5,
            met=met,
        ),
        "accuracy": AccuracyPart(dense=accuracy[0], pruned=accuracy[1]),
        "macs": Pair(dense=40_592_640, pruned=18_971_904),
        "params": Pair(dense=1_084_586, pruned=426_466),
        "file_bytes": Pair(dense=4_411_973, pruned=1_781_783),
        "training_cost": TrainingPart(relative_flops=1.37, seconds=1452.4, dense_seconds=803.0),
        "allocation": AllocationPart(
            solver="joint",
            gap=1.75e-5,
            status="optimal",
            value=0.9205,
            method="halp",
            criterion="taylor",
            granularity=8,
        ),
        "landing": (
            AttemptPart(
                asked=0.495, predicted=0.4877, ratio=0.5421, ratio_ci=(0.533, 0.5502), chosen=False
            ),
            AttemptPart(
                asked=0.452, predicted=0.4503, ratio=0.4705, ratio_ci=(0.4622, 0.4776), chosen=False
            ),
            AttemptPart(
                asked=0.474, predicted=0.4718, ratio=0.4899, ratio_ci=(0.484, 0.4968), chosen=True
            ),
        ),
        "table": TablePart(source="harvest", nets=10, rounds=6, mape=0.0299, worst=0.0812),
        "widths": SMALL if widths is None else widths,
        "frozen": {
            "conv1": "its width is tied to a residual sum",
            "fc": "it is the model's output",
        },
        "digests": {"dense": "0" * 64, "onnx": "1" * 64},
        "artifacts": {
            "dense": "out/run/dense.onnx",
            "onnx": "out/run/model.onnx",
            "plan": "out/run/plan.json",
            "weights": "out/run/model.safetensors",
            "recipe": "out/run/config.toml",
            "engine": "out/run/export/model fp16.engine",
            "table": "tables/here.json",
        },
        "seed": 3,
        "recipe": {
            "model": model,
            "input": "1x3x32x32",
            "target": "onnxruntime:cpu",
            "target_latency": "50%",
            "epochs": 15,
            "lr": 0.1,
            "from_scratch": True,
            "table": None,
        },
        "versions": {"prunekit": "0.1.0", "torch": "2.9.0", "onnx": "1.19.0"},
    }
    return Report(**(parts | changes))


class Page(HTMLParser):
    """Fails on badly nested tags; collects tags, attributes and the text between them."""

    VOID = frozenset({"meta", "br", "col", "link", "img", "wbr"})

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text.append("" if tag == "wbr" else " ")
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.text.append(" ")
        assert self.stack.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())

    def all(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]


def positions(page, tag, key, **attributes):
    return [float(a[key].rstrip("%")) for a in page.all(tag, **attributes)]


def trained(*, iee=True, updates=6, stages=(("dense training", 3), ("iee", 4), ("fine tuning", 5))):
    """Epochs of all stages and updates of the structure, as a finished run has logged them."""
    epochs = [
        EpochPart(
            stage=stage,
            epoch=n + 1,
            step=40 * (n + 1),
            loss=2.0 / (n + 1),
            lr=0.1,
            accuracy=0.9 - 0.1 / (n + 1),
            seconds=30.0 * (n + 1),
        )
        for stage, count in stages
        for n in range(count)
    ]
    names = list(SMALL)
    found = [
        UpdatePart(
            stage="iee",
            step=20 * (c + 1),
            cycle=c,
            predicted_ratio=0.9 - 0.07 * c,
            widths={name: SMALL[name][0] - 8 * min(c, i) for i, name in enumerate(names)},
            **(
                {
                    "omega": 0.3,
                    "iou": 0.5 + 0.08 * c,
                    "grown": 10 * c,
                    "survival": 0.25 if c else None,
                    "relative_flops": 0.1 * c,
                }
                if iee
                else {}
            ),
        )
        for c in range(updates)
    ]
    return {"epochs": tuple(epochs), "updates": tuple(found)}


def section(report):
    """The part of the page about training, or nothing."""
    text = to_html(report)
    if 'aria-labelledby="training"' not in text:
        return None
    start = text.index('<section aria-labelledby="training">')
    return text[start : text.index("</section>", start) + len("</section>")]


def lines(page):
    """The points of every curve."""
    return [
        [tuple(map(float, point.split(","))) for point in a["points"].split()]
        for a in page.all("polyline", **{"class": "curve"})
    ]
