"""The layers of this package."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qkernels.measuring.bench import chained_call
from qkernels.nn import QuantConv2d, QuantLinear

from .problem import INPUT_SCALE, OUTPUT_SCALE, Problem, Unsupported


def build(problem: Problem, threads: int) -> Callable[[], object]:
    static = {"activation": "static", "input_scale": INPUT_SCALE, "input_zero_point": 0}
    x, q = problem.x, problem.q
    if problem.is_conv:
        if problem.scheme not in ("int8", "static"):
            raise Unsupported("not timed")
        layer = QuantConv2d.from_float(problem.layer, weight=problem.weight, **static)
    elif problem.scheme.startswith("weight-only"):
        layer = QuantLinear.from_float(
            problem.layer, weight=problem.weight, activation="weight_only"
        )
        x = x.to(torch.bfloat16 if problem.scheme.endswith("bf16") else torch.float32)
    elif problem.scheme == "dynamic":
        layer = QuantLinear.from_float(problem.layer, weight=problem.weight)
    else:
        layer = QuantLinear.from_float(problem.layer, weight=problem.weight, **static)
    if problem.scheme == "int8":
        return chained_call(layer, q, OUTPUT_SCALE)
    return lambda: layer(x)
