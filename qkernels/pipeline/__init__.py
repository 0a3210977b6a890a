"""The whole workflow: teacher, distilled student, int8 student, all measured on held-out images."""

from qkernels.pipeline.architecture import (
    ModelChoice,
    create_model,
    describe_architecture,
    describe_data,
    open_float_model,
    open_model,
)
from qkernels.pipeline.config import RECIPES, PipelineConfig
from qkernels.pipeline.result import PipelineResult, Row
from qkernels.pipeline.run import PROGRAM, calibration_batches, run_pipeline

__all__ = [
    "PROGRAM",
    "RECIPES",
    "ModelChoice",
    "PipelineConfig",
    "PipelineResult",
    "Row",
    "calibration_batches",
    "create_model",
    "describe_architecture",
    "describe_data",
    "open_float_model",
    "open_model",
    "run_pipeline",
]
