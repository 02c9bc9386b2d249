"""Probing a device: the same few layers at many widths."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from prunekit.core.target import Target
from prunekit.exporting import lowered_for
from prunekit.latency.probe import Probe, read_probe
from prunekit.profiling.journal import damaged, head_of
from prunekit.profiling.measuring import Rounds
from prunekit.profiling.operators import STACK, stack
from prunekit.profiling.request import HarvestPlan
from prunekit.profiling.rounds import layers_us, speeds, typical_us
from prunekit.runtimes import Runtime, runtime_for
from prunekit.support.errors import NoLayerTimesError, PrunekitError
from prunekit.support.progress import say, track

WIDTHS = (
    *(4, 8, 12, 15, 16, 17, 20, 23, 24, 28, 31, 32, 34, 36, 40, 44, 47, 48, 49, 52, 56, 60, 63, 64),
    *(72, 80, 88, 96, 112, 128),
)
GPU_WIDTHS = (
    *(16, 20, 24, 28, 32, 40, 48, 56, 60, 64, 68, 72, 80, 88, 96, 112, 128),
    *(136, 144, 160, 176, 192, 224, 240, 256),
)
"""Tensor cores work in 8 to 64 channels, on layers wide enough to fill the device; and where an
engine has to be built for each, few of them."""
SIDE = {"cpu": 20, "cuda": 56}
"""Height and width of the probe's images: enough that work outweighs what a kernel costs."""
PLAN = HarvestPlan(rounds=2, turns=3, turn_ms=3.0)
_known: dict[str, Probe] = {}


def probe(target: Target, journal: Path | None = None, resume: bool = False) -> Probe:
    """The granularity and the cliffs of the device behind ``target``.

    Measured once per process; with ``resume`` it is what the journal's profile was started with.
    On a runtime that gives no times per layer it is the runtime's usual granularity.
    """
    if resume and journal is not None and (kept := head_of(journal).get("probe")):
        try:
            return TypeAdapter(Probe).validate_python(kept)
        except ValidationError as error:
            raise damaged(journal, 1) from error
    runtime = runtime_for(target)
    key = f"{target.describe()} {replace(runtime.environment(target), created='')}"
    if key not in _known:
        _known[key] = _measure(runtime, target)
        if _known[key].kinds:
            say(f"device: {_known[key]}")
    return _known[key]


def _measure(runtime: Runtime, target: Target) -> Probe:
    nominal = runtime.granularity(target)
    rounds = Rounds(runtime, target, PLAN)
    live = runtime.artifact_format == "module"
    widths = WIDTHS if target.device == "cpu" else GPU_WIDTHS
    side = SIDE[target.device.split(":")[0]]
    try:
        with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
            for width in track(widths, "probing", len(widths)):
                path = Path(folder) / f"stack{width}.onnx"
                made = stack(width, side, target, live, path)
                made = lowered_for(made, runtime, target, path.with_suffix(".lowered.onnx"))
                if width == widths[0] and runtime.profiler(made, target) is None:
                    raise NoLayerTimesError(f"{target} tells no times of layers")
                rounds.add(width, made)
            measured = [rounds.run(number, widths) for number in range(PLAN.rounds)]
    except PrunekitError as error:
        say(f"note: the device cannot be probed ({error}); granularity {nominal} is taken")
        return Probe(nominal, nominal, (), ())
    finally:
        rounds.close()
    slow = speeds(measured)
    times = {width: layers_us(measured, slow, width) for width in widths}
    if missing := [layer for layer in STACK if any(layer not in t for t in times.values())]:
        say(
            f"note: {target} tells no time of a {missing[0]} layer by its name; "
            f"granularity {nominal} is taken"
        )
        return Probe(nominal, nominal, (), ())
    by_layer = {layer: {w: typical_us(times[w][layer]) for w in widths} for layer in STACK}
    return read_probe(by_layer, nominal)
