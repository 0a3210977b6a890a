"""Who is compared on layers: a function from a problem to a call, or Unsupported with a reason.

A call returns what its library returns; `values` turns that into float32 to be checked against the float layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import onnxruntime_peer, openvino_peer, ours, torch_peers, torchao_peer
from .problem import OUTPUT_SCALE, AnyProblem, Unsupported

Call = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    name: str
    package: str
    build: Callable[[Any, int], Call]  # a Problem or ModelProblem, threads
    is_int8: bool = True
    settle: float = 0.01  # seconds that its worker threads may keep spinning after a call


CONTENDERS = (
    Contender("qkernels", "qkernels", ours.build),
    Contender("torch fp32", "torch", torch_peers.fp32, is_int8=False),
    Contender("torch bf16", "torch", torch_peers.bf16, is_int8=False),
    Contender("oneDNN (torch)", "torch", torch_peers.onednn),
    Contender("oneDNN pointwise", "torch", torch_peers.pointwise),
    Contender("FBGEMM (torch)", "torch", torch_peers.fbgemm),
    Contender("torch._int_mm", "torch", torch_peers.int_mm),
    Contender("torchao", "torchao", torchao_peer.build),
    Contender("ONNX Runtime", "onnxruntime", onnxruntime_peer.build, settle=0.04),
    Contender("OpenVINO", "openvino", openvino_peer.build, settle=0.02),
)


def versions(contenders: Iterable[Contender]) -> dict[str, str]:
    """Of every contender's package."""
    found = {}
    for package in dict.fromkeys(c.package for c in contenders):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def prepare(contender: Contender, problem: AnyProblem, threads: int) -> Call:
    """A call whose result was seen to be right, or Unsupported with the reason."""
    try:
        call = contender.build(problem, threads)
        error = relative_error(values(call(), problem), problem)
    except Unsupported:
        raise
    except ImportError as missing:
        raise Unsupported(f"not installed: {missing.name}") from missing
    except Exception as failure:
        first = (str(failure).strip().splitlines() or [""])[0]
        raise Unsupported(f"failed: {type(failure).__name__}: {first[:160]}") from failure
    if not error < problem.tolerance:
        raise Unsupported(
            f"its result is {error:.0%} off the float {problem.what}'s, so its time says nothing"
        )
    return call


def values(result: object, problem: AnyProblem) -> Tensor:
    """What a call returned, as float32 in the float layer's shape."""
    if isinstance(result, (list, tuple)):
        result = result[0]
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    assert isinstance(result, Tensor)
    if result.is_quantized:
        return result.dequantize()
    if result.dtype == torch.int8:
        return result.float() * OUTPUT_SCALE
    if result.dtype == torch.uint8:
        return (result.float() - 128) * OUTPUT_SCALE
    return result.float()


def relative_error(found: Tensor, problem: AnyProblem) -> float:
    expected = problem.expected
    if found.shape != expected.shape:
        found = found.reshape(expected.shape)
    return float((found - expected).norm() / expected.norm())
