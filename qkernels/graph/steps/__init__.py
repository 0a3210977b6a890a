"""ATen operators as steps of programs: one file a family, one row an operator."""

from qkernels.graph.steps import layers, masks, moves, pointwise, reductions, tokens  # noqa: F401  (rows)
from qkernels.graph.steps.table import TABLE, Row, role_of, row, step

__all__ = ["TABLE", "Row", "role_of", "row", "step"]
