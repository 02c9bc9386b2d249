"""What is said of the network a command begins with."""

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("model", "unless", "source"),
    [
        ("net.py:tiny", " (unless net.py:tiny loads weights)", {}),
        ("zoo:resnet8", "", {}),
        ("net.py:tiny", None, {"from_scratch": True}),
        ("net.py:tiny", None, {"weights": "dense.safetensors"}),
        ("again", None, {}),
    ],
)
def test_an_untrained_network_is_noted(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    unless: str | None,
    source: dict[str, object],
) -> None:
    import torch

    import prunekit as pk
    from prunekit.networks.build import build
    from prunekit.networks.saved import save_weights
    from prunekit.pipeline.job import set_up
    from prunekit.pipeline.recipes.prune import make_recipe
    from prunekit.support.progress import verbosity

    monkeypatch.setattr(verbosity, "level", 0)
    dense = build("zoo:resnet8", in_channels=1).module
    plan = pk.ChannelPlan.dense(pk.trace(dense, torch.zeros(1, 1, 8, 8)))
    pk.save("again", dense, plan, "zoo:resnet8", {"num_classes": 10, "in_channels": 1})
    save_weights(build("net.py:tiny").module, home / "dense.safetensors")
    settings = {"model": model, "input": "1x1x8x8", "target": "fake", "data": "digits"}
    capsys.readouterr()
    set_up(make_recipe(settings | source))
    notes = [row for row in capsys.readouterr().err.splitlines() if "untrained" in row]
    expected = (
        f"note: the dense network is untrained{unless}; "
        "add --from-scratch, --weights or --pretrained"
    )
    assert notes == ([] if unless is None else [expected])
    set_up(make_recipe(settings | {"data": None}))
    assert "untrained" not in capsys.readouterr().err
