"""Repair in a run: what is done by default, what the report tells, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import ON_FAKE, TABLE, Says
from support.refusals import PRUNE, Refuses

PRUNED = ("prune", "net.py:tiny", *ON_FAKE, *TABLE, "--target-latency", "65%")


def photos(root: Path, count: int = 40) -> Path:
    rng = np.random.default_rng(0)
    (root / "some").mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 255, (12 + index % 5, 14)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "some" / f"{index}.png")
    return root


def repair_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text()).get("repair")


def test_images_without_labels_score_and_repair(prunekit: Says, home: Path) -> None:
    photos(home / "photos")
    status, _, err = prunekit(*PRUNED, "--data", "images:photos", "-o", "new")
    assert status == 0
    report = json.loads(Path("new/report.json").read_text())
    assert report["allocation"]["criterion"] == "reconstruction"
    assert report["allocation"]["method"] == "oneshot"
    assert (report["accuracy"]["pruned"], report["training_cost"]["seconds"]) == (None, 0)
    first, second = report["repair"]["rows"]
    assert (first["what"], second["what"]) == ("right after slimming", "repaired")
    assert second["distance"] < first["distance"]
    assert report["repair"]["images"] == 40
    assert "repaired by" in err
    page = Path("new/report.html").read_text()
    assert '<h2 id="repair">Repair</h2>' in page
    assert "## Repair" in prunekit("report", "new")[1]


def test_without_images_the_norms_tell_where_they_are_asked(prunekit: Says, home: Path) -> None:
    assert prunekit(*PRUNED, "--epochs", 0, "-o", "plain")[0] == 0
    assert repair_of(home / "plain") is None
    status, _, _ = prunekit(*PRUNED, "--epochs", 0, "--repair", "bias", "-o", "new")
    assert status == 0
    part = repair_of(home / "new")
    assert (part["method"], part["images"]) == ("bias", 0)
    assert [row["distance"] for row in part["rows"]] == [None, None]


def test_none_leaves_the_slim_network(prunekit: Says, home: Path) -> None:
    photos(home / "photos")
    given = ("--data", "images:photos", "--repair", "none")
    assert prunekit(*PRUNED, *given, "-o", "new")[0] == 0
    assert repair_of(home / "new") is None


def test_what_is_trained_is_repaired_where_it_is_asked_for(prunekit: Says, home: Path) -> None:
    trained = ("--data", "digits", "--from-scratch", "--dense-epochs", 2, "--epochs", 1)
    oneshot = (*PRUNED, *trained, "--method", "oneshot")
    assert prunekit(*oneshot, "-o", "plain")[0] == 0
    assert repair_of(home / "plain") is None
    assert prunekit(*oneshot, "--repair", "least-squares", "-o", "new")[0] == 0
    part = repair_of(home / "new")
    assert [row["what"] for row in part["rows"]] == [
        *("right after slimming", "repaired", "after training"),
    ]
    assert all(0 <= row["score"] <= 1 for row in part["rows"])
    assert part["rows"][2]["seconds"] > 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--repair", "norms"), "--repair norms needs images; add --data images:PATH, or use bias"),
        (("--criterion", "activation"), "--criterion activation needs images; add --data images:"),
        (("--data", "images:"), "data 'images:' lacks its folder; write images:PATH"),
        (("--data", "images:gone"), "no such folder: gone"),
        (("--data", "images:few"), "few has 9 images, and at least 10 are needed"),
        (
            ("--data", "images:few", "--from-scratch"),
            "--from-scratch needs labels, and images:few has none; give labelled --data, or leave",
        ),
        (
            ("--data", "digits", "--epochs", 2, "--repair", "bias"),
            "--repair is for method oneshot, and this is halp; leave it out, or add --method",
        ),
        (
            ("--data", "digits", "--epochs", 2, "--criterion", "activation"),
            "--criterion activation scores a network once, before any training; add --method",
        ),
    ],
)
def test_refused(refuses: Refuses, home: Path, flags: tuple[object, ...], text: str) -> None:
    photos(home / "few", 9)
    assert text in refuses(*PRUNE, *flags, "-q", "-o", "new")


def test_a_broken_image_is_named(refuses: Refuses, home: Path) -> None:
    (photos(home / "photos") / "some" / "3.png").write_bytes(b"no image")
    line = refuses(*PRUNE, "--data", "images:photos", "-q", "-o", "new")
    assert line.startswith("cannot read image photos/some/3.png: not an image file")


def test_sparsify_needs_labels(refuses: Refuses, home: Path) -> None:
    line = refuses("sparsify", "net.py:tiny", "--input", "1x1x16x16", "--data", "images:x")
    assert "sparsify needs labels, and images:x has none" in line
