"""Int8 from layer to layer: a quantized model rewritten so that its layers hand each other int8."""

from qkernels.graph.compiled import CompiledModel
from qkernels.graph.compiling import compile
from qkernels.graph.report import ChainReport, LayerChain

__all__ = ["ChainReport", "CompiledModel", "LayerChain", "compile"]
