"""What was measured: layers at their widths, and whole networks."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.core.graph import LayerShape


@dataclass(frozen=True)
class Sample:
    """One layer at one width in one network: microseconds a call, their spread (IQR), runs."""

    net: int
    cin: int
    cout: int
    us: float
    spread_us: float
    runs: int
    calls: int = 1


@dataclass(frozen=True)
class Entry:
    """All samples of one layer shape."""

    shape: LayerShape
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Network:
    """One whole network that was measured: its layers' summed time and its end-to-end time.

    ``session`` names the profile it was measured in, where a table joins several.
    """

    model: str
    kept: float
    calls: int
    layers_us: float
    end_to_end_us: float
    spread_us: float
    runs: int
    session: str = ""
