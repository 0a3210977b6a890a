"""Post-training quantization: `quantize` a model, read the report, `save` and `load` it."""

from qkernels.quantization.calibration import calibrate
from qkernels.quantization.checkpoint import CheckpointError, load, read_metadata, save
from qkernels.quantization.compare import LayerError, layer_errors
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.convert import quantize
from qkernels.quantization.cross_validation import CrossValidation, cross_validate
from qkernels.quantization.fold import Folds, fold_batch_norm
from qkernels.quantization.report import LayerReport, QuantReport
from qkernels.quantization.sensitivity import Mixed, Sensitivity, mix, scan

__all__ = [
    "CheckpointError",
    "CrossValidation",
    "Folds",
    "LayerError",
    "LayerReport",
    "Mixed",
    "QuantConfig",
    "QuantReport",
    "Sensitivity",
    "calibrate",
    "cross_validate",
    "fold_batch_norm",
    "layer_errors",
    "load",
    "mix",
    "quantize",
    "read_metadata",
    "save",
    "scan",
]
