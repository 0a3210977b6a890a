"""Programs of one step, run on every instruction set, against the reference."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor

from qkernels import _core
from qkernels.program.format import Step, Value, assemble
from qkernels.reference import Epilogue, Operand

ISAS = [row["isa"] for row in _core.kernels() if row["available"]]
ZERO_POINTS = [-128, -1, 0, 3, 127]
NASTY = [np.nan, np.inf, -np.inf, 1e-45, -1e-40, 1e-30, -0.0, 0.0, 3e38, -3e38, 88.5, -88.5, 20.0]  # fmt: skip


def box(size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """n, h, w, c of a value of any rank."""
    return (size[0], *size[1:-1], *[1] * (4 - len(size)), size[-1])  # type: ignore[return-value]


def floats(seed: int, size: tuple[int, ...], nasty: bool = False, spread: float = 3.0) -> Tensor:
    random = np.random.default_rng(seed)
    x = random.standard_normal(size).astype(np.float32) * np.float32(spread)
    if nasty:
        where = random.random(size) < 0.3
        x[where] = random.choice(NASTY, int(where.sum())).astype(np.float32)
    return torch.from_numpy(x)


@st.composite
def outputs(draw: Any) -> Epilogue:
    e = Epilogue()
    if draw(st.booleans()):
        e = Epilogue(out_dtype=torch.int8, output_scale=draw(st.sampled_from([0.037, 0.0625])))
        e.output_zero_point = draw(st.sampled_from(ZERO_POINTS))
    return e


def output_fields(e: Epilogue) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if e.out_dtype == torch.int8:
        fields = {"out_inv_scale": np.float32(1) / np.float32(e.output_scale)}
        fields["out_zero"] = e.output_zero_point
    for name, value in (("lo", e.clamp_min), ("hi", e.clamp_max)):
        if value is not None:
            fields[name] = value
    return fields


class OneStep:
    """A program whose inputs become int8 where they are wanted so, by steps `unary` before the one that is tested; its
    output becomes float32 again, exactly, where it is int8."""

    def __init__(self, kind: str, fields: dict[str, Any], e: Epilogue, y_size: tuple[int, ...],
                 constants: dict[str, np.ndarray] | None = None) -> None:  # fmt: skip
        self.kind, self.fields, self.e, self.y_size = kind, fields, e, y_size
        self.constants = constants or {}

    def program(self, operands: list[Operand]) -> np.ndarray:
        values, steps, reads = list[Value](), list[Step](), list[int]()
        for operand in operands:
            size = tuple(operand.values.shape)
            reads.append(len(values))
            values.append(Value(size[-1], len(size), "float32", callers=True, nhwc_only=True))
        inputs = tuple(reads)
        for i, operand in enumerate(operands):
            if operand.values.dtype == torch.int8:
                values.append(Value(operand.values.shape[-1], operand.values.dim(), "int8"))
                steps.append(Step("unary", f"to int8 {i}", reads[i], len(values) - 1))
                reads[i] = len(values) - 1
        y = self.y_size
        fields = {**self.fields, **output_fields(self.e)}
        small = self.e.out_dtype == torch.int8
        values.append(Value(y[-1], len(y), "int8" if small else "float32", callers=not small))
        end = len(values) - 1
        steps.append(Step(self.kind, "it", reads[0], end, tuple(reads[1:]), fields, self.constants))
        if small:
            values.append(Value(y[-1], len(y), "float32", callers=True))
            steps.append(Step("unary", "back", end, end + 1))
        return assemble(values, steps, inputs, [len(values) - 1])

    def run(self, operands: list[Operand], isa: str, threads: int) -> Tensor:
        """What the step gives, as numbers of its own type."""
        program = _core.Program(self.program(operands))
        x = [as_caller(o.values.float()) for o in operands]
        (y,) = program.run(x, threads, isa=isa)
        got = torch.from_numpy(y)
        if got.dim() == 4:
            got = got.permute(0, 2, 3, 1)
        return got.to(self.e.out_dtype)

    def check(self, operands: list[Operand], expected: Tensor, threads: int) -> None:
        """The bits of ``expected`` [n, h, w, c] on every instruction set."""
        for isa in ISAS:
            assert_same_bits(
                self.run(operands, isa, threads).reshape(expected.shape), expected, isa
            )


def as_caller(x: Tensor) -> np.ndarray:
    """An image as the caller sees it, channels first, over the same memory order."""
    return (x.permute(0, 3, 1, 2) if x.dim() == 4 else x).numpy()


def assert_same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    assert got.dtype == expected.dtype
    got, expected = got.contiguous(), expected.contiguous()
    whole = torch.int8 if got.dtype == torch.int8 else torch.int32
    different = got.view(whole) != expected.view(whole)
    if different.any():
        first = different.nonzero()[0].tolist()
        place = tuple(first)
        raise AssertionError(
            f"{what}: {int(different.sum())} differ, first at {first}: {got[place]} and {expected[place]}"
        )
