"""Post-training quantization: `quantize` a model, read the report, `save` and `load` it."""

from typing import TYPE_CHECKING

from qkernels.quantization.calibration import calibrate
from qkernels.quantization.checkpoint import CheckpointError, load, read_metadata, save
from qkernels.quantization.compare import LayerError, layer_errors
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.convert import quantize, quantize_
from qkernels.quantization.cross_validation import CrossValidation, cross_validate
from qkernels.quantization.fold import Folds, fold_batch_norm_
from qkernels.quantization.observers import Observer, observer_names, register_observer
from qkernels.quantization.report import LayerReport, QuantReport
from qkernels.quantization.sensitivity import Mixed, Sensitivity, mix, scan
from qkernels.utils.renamed import renamed

__all__ = [
    "CheckpointError",
    "CrossValidation",
    "Folds",
    "LayerError",
    "LayerReport",
    "Mixed",
    "Observer",
    "QuantConfig",
    "QuantReport",
    "Sensitivity",
    "calibrate",
    "cross_validate",
    "fold_batch_norm_",
    "layer_errors",
    "load",
    "mix",
    "observer_names",
    "quantize",
    "quantize_",
    "read_metadata",
    "register_observer",
    "save",
    "scan",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        return renamed(__name__, name)
