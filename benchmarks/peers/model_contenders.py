"""Who is compared on whole models: a function from a problem and a number of threads to a call.

Everything that a library offers to make a model fast is done before the call: channels-last weights, folding, static
shapes, its own calibration of int8 on the same data.
"""

from __future__ import annotations

import copy
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import qkernels

from .contenders import Call, Contender
from .model_problem import ModelProblem
from .onnx_model import onnxruntime_fp32, onnxruntime_int8
from .openvino_model import openvino
from .problem import Unsupported

OURS = "qkernels"


@lru_cache
@torch.inference_mode(False)
def _int8(name: str) -> nn.Module:
    problem = ModelProblem(name, 1)
    return qkernels.quantize(problem.net, "static", problem.calibration)


def compiled(problem: ModelProblem, threads: int) -> Call:
    model, x = qkernels.compile(_int8(problem.model), problem.x), problem.x
    return lambda: model(x)


def compiled_exact(problem: ModelProblem, threads: int) -> Call:
    model, x = qkernels.compile(_int8(problem.model), problem.x, exact=True), problem.x
    return lambda: model(x)


def module_wise(problem: ModelProblem, threads: int) -> Call:
    model, x = _int8(problem.model), _fast_layout(problem.x)
    return lambda: model(x)


def torch_fp32(problem: ModelProblem, threads: int) -> Call:
    model, x = _fast_layout(copy.deepcopy(problem.net)), _fast_layout(problem.x)
    return lambda: model(x)


def torch_bf16(problem: ModelProblem, threads: int) -> Call:
    model = _fast_layout(copy.deepcopy(problem.net)).bfloat16()
    x = _fast_layout(problem.x)
    x = x.bfloat16() if x.is_floating_point() else x
    return lambda: model(x)


def torch_compile(problem: ModelProblem, threads: int) -> Call:
    """Inductor with frozen weights, which folds batch norms and packs for oneDNN."""
    torch._dynamo.reset()  # else it gives up after eight models
    net, x = _fast_layout(copy.deepcopy(problem.net)), _fast_layout(problem.x)
    model = torch.compile(net, dynamic=False, options={"freezing": True})
    return lambda: model(x)


@lru_cache
@torch.inference_mode(False)
def _fx_int8(name: str) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    problem = ModelProblem(name, 1)
    torch.backends.quantized.engine = "onednn"
    config = {"backend_config": get_onednn_backend_config()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        mapping = get_default_qconfig_mapping("onednn")
        prepared = prepare_fx(copy.deepcopy(problem.net), mapping, (problem.x,), **config)
        for x in problem.calibration:
            prepared(x)
        return convert_fx(prepared, qconfig_mapping=mapping, **config)


def torch_fx_int8(problem: ModelProblem, threads: int) -> Call:
    model, x = _fx_int8(problem.model), _fast_layout(problem.x)
    return lambda: model(x)


def _fast_layout(value: Any) -> Any:
    """Channels-last where there are images; convolutions of torch are faster so."""
    is_image = isinstance(value, Tensor) and value.dim() == 4
    has_images = isinstance(value, nn.Module) and any(p.dim() == 4 for p in value.parameters())
    return value.to(memory_format=torch.channels_last) if is_image or has_images else value


def without_torch(problem: ModelProblem, threads: int) -> Call:
    model = qkernels.compile(_int8(problem.model), problem.x)
    if model.program is None:
        raise Unsupported("torch has a part in it")
    program, x = model.program.program, problem.x.numpy()
    program.threads = threads
    return lambda: program(x)


CONTENDERS = (
    Contender(OURS, "qkernels", compiled),
    Contender("qkernels, exact", "qkernels", compiled_exact),
    Contender("qkernels, without torch", "qkernels", without_torch),
    Contender("qkernels, layer by layer", "qkernels", module_wise),
    Contender("torch fp32", "torch", torch_fp32, is_int8=False),
    Contender("torch bf16", "torch", torch_bf16, is_int8=False),
    Contender("torch.compile fp32", "torch", torch_compile, is_int8=False),
    Contender("torch FX int8", "torch", torch_fx_int8),
    Contender("ONNX Runtime fp32", "onnxruntime", onnxruntime_fp32, is_int8=False, settle=0.04),
    Contender("ONNX Runtime int8", "onnxruntime", onnxruntime_int8, settle=0.04),
    Contender("OpenVINO fp32", "openvino", openvino("f32"), is_int8=False, settle=0.02),
    Contender("OpenVINO bf16", "openvino", openvino("bf16"), is_int8=False, settle=0.02),
    Contender("OpenVINO int8", "nncf", openvino("int8"), settle=0.02),
)
PEERS = tuple(c.name for c in CONTENDERS if not c.name.startswith(OURS))
