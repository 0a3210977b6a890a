"""ONNX Runtime: QLinear operators, QDQ graphs, MatMulInteger, and 8-bit MatMulNBits for weight-only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .problem import INPUT_SCALE, OUTPUT_SCALE, Problem, Unsupported


def build(problem: Problem, threads: int) -> Callable[[], object]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    scheme = problem.scheme
    weight, scale = (t.numpy() for t in problem.weight)
    bias = problem.layer.bias.numpy()
    x = problem.x.contiguous().numpy()
    tensors = {
        "xs": np.float32(INPUT_SCALE),
        "xz": np.uint8(128),
        "ys": np.float32(OUTPUT_SCALE),
        "yz": np.uint8(128),
        "ws": scale,
        "wz": np.zeros(len(scale), np.int8),
        "bs": (scale * np.float32(INPUT_SCALE)).astype(np.float32),
        "bz": np.zeros(len(scale), np.int32),
    }
    tensors["b"] = np.round(bias / tensors["bs"]).astype(np.int32)
    node, out_type = helper.make_node, TensorProto.FLOAT
    in_type = TensorProto.UINT8 if scheme == "int8" else TensorProto.FLOAT
    attributes = {}
    if problem.is_conv:
        c = problem.conv
        attributes = {
            "strides": [c.stride] * 2,
            "pads": [c.padding] * 4,
            "dilations": [c.dilation] * 2,
            "group": c.groups,
        }
        tensors["w"] = weight
    else:
        tensors["w"] = np.ascontiguousarray(weight.T)
    domains = [helper.make_opsetid("", 21)]
    if scheme in ("int8", "static"):
        quantize = [node("QuantizeLinear", ["x", "xs", "xz"], ["xq"])]
        dequantize = [node("DequantizeLinear", ["yq", "ys", "yz"], ["y"])]
        axis = 0 if problem.is_conv else 1
        inner = [
            node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"]),
            node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=axis),
            node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], axis=0),
        ]
        if problem.is_conv:
            inner.append(node("Conv", ["xf", "wf", "bf"], ["yf"], **attributes))
        else:
            inner.append(node("Gemm", ["xf", "wf", "bf"], ["yf"]))
        inner.append(node("QuantizeLinear", ["yf", "ys", "yz"], ["yq"]))
        if scheme == "int8":
            x = (np.clip(np.round(x / INPUT_SCALE), -128, 127) + 128).astype(np.uint8)
            nodes, out_type = inner, TensorProto.UINT8
            for n in nodes:
                n.input[:] = ["x" if i == "xq" else i for i in n.input]
                n.output[:] = ["y" if o == "yq" else o for o in n.output]
        else:
            nodes = quantize + inner + dequantize
    elif scheme == "dynamic":
        nodes = [
            node("DynamicQuantizeLinear", ["x"], ["xq", "s", "z"]),
            node("MatMulInteger", ["xq", "w", "z", "wz"], ["acc"]),
            node("Cast", ["acc"], ["accf"], to=TensorProto.FLOAT),
            node("Mul", ["s", "ws"], ["sw"]),
            node("Mul", ["accf", "sw"], ["scaled"]),
            node("Add", ["scaled", "bias"], ["y"]),
        ]
        tensors["bias"] = bias
    elif scheme == "weight-only f32":
        k, n, block = problem.linear.k, problem.linear.n, 128
        if k % block:
            raise Unsupported(f"MatMulNBits takes K in blocks of {block}")
        blocks = k // block
        packed = (weight.astype(np.int16) + 128).astype(np.uint8).reshape(n, blocks, block)
        tensors |= {"w": packed, "s": np.repeat(scale[:, None], blocks, 1), "bias": bias}
        nodes = [
            node(
                "MatMulNBits",
                ["x", "w", "s", "", "", "bias"],
                ["y"],
                domain="com.microsoft",
                K=k,
                N=n,
                bits=8,
                block_size=block,
                accuracy_level=1,  # float32 activations; 4 would quantize them
            )
        ]
        domains.append(helper.make_opsetid("com.microsoft", 1))
    else:
        raise Unsupported("its CPU provider has no bfloat16 kernel")
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", in_type, x.shape)],
        [helper.make_tensor_value_info("y", out_type, list(problem.expected.shape))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    if len(domains) == 1:
        onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    feed = {"x": x}
    return lambda: session.run(None, feed)
