"""Which artifact a path stands for."""

from pathlib import Path


def test_a_live_network_goes_by_its_run(home: Path) -> None:
    from prunekit.core.target import Target
    from prunekit.pipeline.check import open_artifact

    assert open_artifact("run", Target("torch"), "net.py:tiny").path == "run"
