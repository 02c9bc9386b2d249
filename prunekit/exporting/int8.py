"""INT8 in the file itself: quantisers in an ONNX graph, their ranges taken from the user's data."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from prunekit.core.target import cpu_flags
from prunekit.runtimes.base import Arrays
from prunekit.support.errors import ModelError, UsageError, first_line

_WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Quantiser:
    """How a runtime wants its quantisers; weights are symmetric, by channel, for all.

    ``symmetric`` activations have their zero at 0. ``whole_bias``: biases are 32-bit integers.
    ``short_weights`` have 7 bits: x86 processors without VNNI sum two products in 16 bits, where 8
    bits saturate.
    """

    symmetric: bool
    whole_bias: bool
    short_weights: bool = False

    @classmethod
    def for_runtime(cls, name: str) -> Quantiser:
        """TensorRT takes symmetric ranges and fp32 biases only; others fuse the opposite."""
        trt = name in ("tensorrt", "onnxruntime_tensorrt")
        flags = cpu_flags()
        saturates = "avx2" in flags and not flags & _WIDE_SUMS
        return cls(symmetric=trt, whole_bias=not trt, short_weights=saturates and not trt)


def quantise(
    source: str | Path, path: str | Path, batches: Sequence[Arrays], how: Quantiser
) -> None:
    """Write the fp32 ONNX file ``source`` to ``path`` with quantisers around its layers.

    Ranges are the least and largest values seen on ``batches``, with ONNX Runtime's quantiser.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not batches:
        raise UsageError("int8 needs data for its ranges; add --data")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> Arrays | None:
            return next(self._left, None)

    extra = {
        "ActivationSymmetric": how.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": how.whole_bias,
    }
    try:
        with _quietly(), tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize(
                str(prepared),
                str(path),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=how.short_weights,
                activation_type=QuantType.QInt8 if how.symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options=extra,
            )
    except Exception as error:  # the quantiser has no error type of its own
        reason = first_line(error, longest=200)
        raise ModelError(f"the network cannot be quantised: {reason}") from error
    nodes = onnx.load(str(path)).graph.node
    if not any(n.op_type == "QuantizeLinear" for n in nodes):
        raise ModelError(
            f"nothing of the network could be quantised: no {', '.join(_WEIGHTED)} has a weight"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """The quantiser advises on the root logger to do what has been done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
