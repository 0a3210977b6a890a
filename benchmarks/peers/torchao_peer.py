"""torchao's eager `quantize_`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from .problem import Problem, Unsupported


def build(problem: Problem, threads: int) -> Callable[[], object]:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    if problem.is_conv:
        raise Unsupported("its eager int8 covers linear layers")
    configs = {
        "dynamic": Int8DynamicActivationInt8WeightConfig,
        "weight-only f32": Int8WeightOnlyConfig,
        "weight-only bf16": Int8WeightOnlyConfig,
    }
    if problem.scheme not in configs:
        raise Unsupported("has no static int8 activations in eager mode")
    dtype = torch.bfloat16 if problem.scheme.endswith("bf16") else torch.float32
    model = nn.Sequential(copy.deepcopy(problem.layer)).to(dtype)
    quantize_(model, configs[problem.scheme]())
    x = problem.x.to(dtype)
    return lambda: model(x)
