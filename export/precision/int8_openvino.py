"""int8 for OpenVINO: NNCF's post-training quantization, written as OpenVINO's own two files, graph and weights.

Quantized are convolutions and matrix products. Grouped convolutions, norms and what joins branches stay in float: on
the CPU plugin a file with all of them in int8 is the slower one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.precision import OPENVINO, require
from export.quiet import quiet

if TYPE_CHECKING:
    import numpy as np

    from export.precision import Conversion

IN_FLOAT = ["GroupConvolution", "MVN", "Concat", "Add", "Multiply", "ReduceMean"]
OUTLIERS = 1e-4  # share of the values beyond each end of a range, for `percentile`


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Quantize an fp32 ONNX file into `destination` (.xml) and the .bin beside it.

    Raises UserError when OpenVINO or NNCF is missing, or NNCF has no such calibration method.
    """
    assert conversion.images is not None, "int8 is calibrated"
    require(OPENVINO, conversion.method)
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use over the network
    with quiet():
        import nncf
        import openvino

        quantized = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(_Anew(conversion)),
            subset_size=sys.maxsize,
            preset=nncf.QuantizationPreset.MIXED,  # zero points for GELU and the like: no slower, and far closer
            ignored_scope=nncf.IgnoredScope(types=IN_FLOAT, names=list(conversion.kept), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=_estimator(conversion.method)
            ),
        )
        openvino.save_model(quantized, destination, compress_to_fp16=False)


class _Anew:
    """The images, from the start whenever NNCF asks."""

    def __init__(self, conversion: Conversion) -> None:
        self._conversion = conversion

    def __iter__(self) -> Iterator[np.ndarray]:
        assert self._conversion.images is not None
        return self._conversion.images()


def _estimator(method: str) -> Any:
    from nncf.quantization import range_estimator as nncf

    if method == "minmax":
        return nncf.RangeEstimatorParametersSet.MINMAX
    end = nncf.StatisticsCollectorParameters(
        statistics_type=nncf.StatisticsType.QUANTILE,
        aggregator_type=nncf.AggregatorType.MEAN,
        quantile_outlier_prob=OUTLIERS,
    )
    return nncf.RangeEstimatorParameters(min=end, max=end)
