"""Students, and int8 ranges, from a teacher alone: no image of its training data is needed."""

from qkernels.datafree.batch_norm import BatchNormGap
from qkernels.datafree.generator import Generator
from qkernels.datafree.image_kind import ImageKind
from qkernels.datafree.inversion import InversionConfig, invert
from qkernels.datafree.objectives import DAFL, DFQ, GeneratorObjective, LabelVAE
from qkernels.datafree.sheet import write_sheet

__all__ = [
    "DAFL",
    "DFQ",
    "BatchNormGap",
    "Generator",
    "GeneratorObjective",
    "ImageKind",
    "InversionConfig",
    "LabelVAE",
    "invert",
    "write_sheet",
]
