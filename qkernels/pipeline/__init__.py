"""The whole workflow: teacher, distilled student, int8 student, all measured on held-out images."""

from qkernels.pipeline.architecture import create_model, describe_architecture
from qkernels.pipeline.config import RECIPES, PipelineConfig
from qkernels.pipeline.result import PipelineResult, Row
from qkernels.pipeline.run import calibration_batches, run_pipeline

__all__ = [
    "RECIPES",
    "PipelineConfig",
    "PipelineResult",
    "Row",
    "calibration_batches",
    "create_model",
    "describe_architecture",
    "run_pipeline",
]
