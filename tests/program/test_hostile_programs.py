"""A program that somebody wrote to do harm is refused with a sentence, or runs within its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from program_bytes import payload, seal, tables
from rearranging import Atom, fields
from torch import Tensor, nn

import qkernels as qk
from qkernels import _core, models, ops  # noqa: F401
from qkernels.program import Program
from qkernels.program.format import Step, Value, assemble, kinds
from qkernels.program.memory import at_line


def image(channels: int = 1, dtype: str = "float32", **how: Any) -> Value:
    return Value(channels, 4, dtype, **how)


def averaging(more_values: list[Value], more: list[Step]) -> np.ndarray:
    """Image 0 -> mean 1 -> rows 2, and further steps between."""
    values = [image(callers=True, nhwc_only=True), image(), Value(0, 2, "float32", callers=True)]
    steps = [Step("mean", "mean", 0, 1), *more, Step("planar", "rows", 1, 2)]
    return assemble([*values, *more_values], steps, [0], [2])


@pytest.mark.parametrize("slots", [1 << 13, 1 << 14])  # whose bytes add up to 2^63 and to 2^64
def test_sizes_that_add_up_to_little_are_too_large(slots: int) -> None:
    blow_up = {"fill": 1, "pad_top": 2**24 - 1, "pad_left": 2**24 - 1}
    steps = [Step("copy", f"copy{i}", 1, 3 + i, fields=blow_up) for i in range(slots)]
    data = averaging([image() for _ in range(slots)], steps)
    header, values, _ = tables(data)
    values["slot"][3:] = np.arange(1, slots + 1)
    values["slot"][1] = 0
    header["slots"] = slots + 1
    seal(data)
    with pytest.raises(ValueError, match="bytes, too many"):
        Program(data)(np.ones((1, 1, 2, 2), np.float32))


def test_an_input_is_never_written() -> None:
    data = averaging([], [Step("copy", "over", 1, 2)])
    _, _, steps = tables(data)
    steps["y"][1] = 0
    seal(data)
    with pytest.raises(ValueError, match="step 1 may not run: it writes an input"):
        Program(data)


def test_an_input_that_is_added_lies_as_the_step_reads_it() -> None:
    weight = _core.pack_weight(np.ones((1, 1, 1, 1), np.int8))
    constants = {"weight": weight, "w_scale": np.ones(1, np.float32)}
    values = [image(callers=True, nhwc_only=True), image(callers=True)]
    step = Step("conv2d", "conv", 0, 1, others=(0,), constants=constants)
    data = assemble(values, [step], [0], [1])
    x = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    assert np.isfinite(Program(data)(np.broadcast_to(x[:1], (5, 1, 2, 2)))).all()
    _, table, _ = tables(data)
    table["nhwc_only"][0] = 0
    seal(data)
    with pytest.raises(ValueError, match="it adds an input whose pixels may lie anywhere"):
        Program(data)


def test_bytes_that_do_not_lie_together_are_refused() -> None:
    data = averaging([], [])
    for torn in (data[::-1], np.broadcast_to(np.uint8(0), 10**6)):
        with pytest.raises((ValueError, BufferError), match="contiguous"):
            _core.Program(torn)


def test_an_input_without_memory_for_it_is_an_exception() -> None:
    weight = _core.pack_weight(np.ones((1, 3), np.int8))
    constants = {"weight": weight, "w_scale": np.ones(1, np.float32)}
    values = [Value(3, 2, "float32", callers=True), Value(1, 2, "float32", callers=True)]
    step = Step("linear", "linear", 0, 1, fields={"k": 3}, constants=constants)
    program = Program(assemble(values, [step], [0], [1]))
    with pytest.raises(MemoryError):
        program(np.broadcast_to(np.float32(0), (2**46, 3)))


def test_the_operator_of_torch_checks_the_bytes_that_it_is_given() -> None:
    def run(data: np.ndarray, arena: Tensor | None = None) -> list[Tensor]:
        memory = torch.zeros(1 << 12, dtype=torch.uint8) if arena is None else arena
        x = torch.ones(1, 1, 2, 2)
        return torch.ops.qkernels.run_program(torch.from_numpy(data), memory, [x], None)

    data = averaging([], [])
    assert run(data)[0].item() == 1
    bad = at_line(data.copy())
    tables(bad)[0]["inputs"] = 2**30
    with pytest.raises(RuntimeError, match=r"run_program: program is none that may run"):
        run(bad)
    with pytest.raises(RuntimeError, match="aligned to 64"):
        run(data, torch.zeros(1 << 12, dtype=torch.uint8)[1:])


class Everything(nn.Module):
    """Images through every kind of step that images know."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.pool, self.deep = nn.MaxPool2d(3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.mean, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.pool(torch.cat([torch.relu(self.a(x)), self.b(x)], 1))
        y = torch.relu(self.deep(y) + y)
        return y, self.head(torch.flatten(self.mean(y), 1))


def whole(model: nn.Module, x: Tensor) -> tuple[Program, np.ndarray]:
    int8 = qk.quantize(model.eval(), {"activation": "static"}, lambda m: m(x))
    program = qk.compile(int8, x).program
    assert program is not None
    return program.program, x.numpy()


def movers() -> tuple[Program, np.ndarray]:
    """Windows of an image [n, 4, 6, 3] as its batch, half of each, and back to tokens."""
    windows = [
        Atom(0, 0),
        Atom(1, 0),
        Atom(1, 1, 2),
        Atom(2, 0),
        Atom(2, 2, 3),
        Atom(3, 3, start=1),
    ]
    tokens = [Atom(0, 0), Atom(0, 1, 4), Atom(1, 1, start=1, stride=2), Atom(2, 1), Atom(3, 3)]
    values = [image(0, callers=True, planar=True), image(0), Value(0, 3, "float32", callers=True)]
    steps = [
        Step("rearrange", "windows", 0, 1, fields=fields(windows, [0, 1, 3, 2, 4, 5])),
        Step("rearrange", "tokens", 1, 2, fields=fields(tokens, [0, 1, 2, 3, 4])),
    ]
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    return Program(assemble(values, steps, [0], [2])), x


def sizes() -> tuple[Program, np.ndarray]:
    """An image that is mirrored around itself and made larger, by pixels and by blends, as int8 too."""
    eye = {
        "weight": _core.pack_weight(np.eye(2, dtype=np.int8)),
        "w_scale": np.ones(2, np.float32),
    }
    values = [image(2, callers=True, nhwc_only=True), image(2, "int8"), image(2, "int8")]
    values += [image(2, "int8"), image(2), image(2, callers=True)]
    steps = [
        Step("linear", "to int8", 0, 1, fields={"k": 2}, constants=eye),
        Step("pad", "mirror", 1, 2, fields={"pad_top": 1, "pad_right": 2}),
        Step("resize", "twice", 2, 3, fields={"mode": "bilinear", "scale_h": 2, "scale_w": 1.5}),
        Step("linear", "to float", 3, 4, fields={"k": 2}, constants=eye),
        Step("resize", "less", 4, 5, fields={"out_h": 3, "out_w": 2}),
    ]
    return Program(assemble(values, steps, [0], [5])), np.ones((2, 2, 4, 5), np.float32)


def words(dtype: str) -> tuple[Program, np.ndarray]:
    """A first token that is a constant, and words of a table of 5."""
    weight = _core.pack_weight(np.eye(3, dtype=np.int8))
    tables = {"table": np.arange(15, dtype=np.int8).reshape(5, 3), "scale": np.ones(5, np.float32)}
    first = np.ones((1, 1, 3), dtype)
    values = [
        Value(4, 2, "int64", callers=True),
        *(Value(3, 3, dtype) for _ in range(2)),
        Value(3, 3, "float32", callers=True),
    ]
    part = fields(
        [Atom(0, 0), Atom(1, 1), Atom(3, 3)], [0, 1, 2], join_axis=1, join_at=1, join_total=5
    )
    ones = np.ones(3, np.float32)
    steps = [
        Step("embedding", "words", 0, 1, fields={"rows": 5}, constants=tables),
        Step(
            "constant",
            "first",
            0,
            2,
            fields={"c": 3, "join_axis": 1, "join_total": 5},
            constants={"data": first},
        ),
        Step("rearrange", "behind", 1, 2, fields=part),
        Step(
            "linear", "head", 2, 3, fields={"k": 3}, constants={"weight": weight, "w_scale": ones}
        ),
    ]
    return Program(assemble(values, steps, [0], [3])), np.array([[0, 1, 2, 4], [4, 3, 2, 1]])


def counts() -> tuple[Program, np.ndarray]:
    """The row of the largest token, of rows of a table of 5 that sums along tokens name."""
    values = [
        Value(1, 3, "float32", callers=True),
        Value(1, 3, "float32"),
        Value(3, 3, "float32"),
        Value(1, 3, "float32"),
        Value(1, 2, "float32"),
        Value(3, 2, "float32", callers=True),
    ]
    tables = {"table": np.arange(15, dtype=np.float32).reshape(5, 3)}
    one = fields([Atom(0, 0), Atom(1, 3), Atom(3, 3)], [0, 1, 2])
    steps = [
        Step("cumsum", "counts", 0, 1),
        Step("embedding", "rows", 1, 2, fields={"rows": 5}, constants=tables),
        Step("argmax", "place", 0, 3),
        Step("rearrange", "as rows", 3, 4, fields=one),
        Step("gather", "row", 2, 5, (4,)),
    ]
    return Program(assemble(values, steps, [0], [5])), np.ones((2, 4, 1), np.float32)


EXTREMES = [-(2**31), -129, -1, 0, 1, 2, 3, 17, 255, 2**16, 2**31 - 1, np.nan, np.inf, 1e-45, 1e38]


def forgeries(data: np.ndarray, step: int) -> Any:
    """The program with each field of a step's payload set to each extreme, its checksum made good."""
    record = payload(data, step).dtype
    for name in record.names or ():
        several = range(record[name].shape[0]) if record[name].shape else None
        for part in record[name].names or several or (None,):
            for value in EXTREMES:
                forged = data.copy()
                place = payload(forged, step) if part is None else payload(forged, step)[name]
                kind = place.dtype if several else place.dtype[part or name]
                if kind.kind != "f" and not np.isfinite(value):
                    continue
                limits = None if kind.kind == "f" else np.iinfo(kind)
                place[name if part is None else part] = (
                    value if limits is None else int(min(max(value, limits.min), limits.max))
                )
                seal(forged)
                yield forged


ONES = np.ones(4, np.float32)
# kind, fields, constants, rank, types of what it reads
ONE_STEP: list[tuple[str, dict[str, Any], dict[str, np.ndarray], int, tuple[str, ...]]] = [
    ("unary", {"function": "silu"}, {}, 4, ("float32",)),
    ("binary", {"op": "mul", "data_c": 4}, {"data": ONES}, 3, ("int8",)),
    ("binary", {}, {}, 4, ("int8", "float32")),
    ("softmax", {}, {}, 3, ("int8",)),
    ("rms_norm", {}, {"weight": ONES}, 4, ("int8",)),
    ("layer_norm", {}, {"weight": ONES, "bias": ONES}, 4, ("int8",)),
    ("group_norm", {"groups": 2}, {"weight": ONES, "bias": ONES}, 4, ("float32",)),
    ("lookup", {}, {"table": np.arange(256, dtype=np.uint8).view(np.int8)}, 4, ("int8",)),
    ("affine", {}, {"weight": ONES, "bias": ONES}, 4, ("int8",)),
    ("reduce", {}, {}, 4, ("int8",)),
    ("avg_pool", {"same_scale": 0, "adaptive": 1, "out_h": 3, "out_w": 5}, {}, 4, ("int8",)),
    (
        "attention",
        {"heads": 2, "kv_heads": 2, "width": 2, "v_width": 2},
        {},
        3,
        ("int8", "float32", "int8"),
    ),
    (
        "attention",
        {"heads": 2, "width": 2, "v_width": 2, "bias_k": 3},
        {"bias": ONES[:3]},
        3,
        ("float32",) * 3,
    ),
]


def of_one_step(case: tuple[Any, ...]) -> tuple[Program, np.ndarray]:
    """A program of one step of a kind, between steps that make int8 of its input, and of int8 the output."""
    kind, fields, constants, rank, types = case
    values = [Value(4, rank, "float32", callers=True, nhwc_only=rank == 4)]
    values += [Value(4, rank, t) for t in types]
    steps = [Step("unary", f"x{i}", 0, 1 + i) for i in range(len(types))]
    if kind == "lookup":  # which writes what it reads
        values.append(Value(4, rank, "int8"))
        steps.append(Step("unary", "y", len(values) - 1, len(values)))
    values.append(Value(4, rank, "float32", callers=True))
    reads, y = range(1, 1 + len(types)), 1 + len(types)
    made = Step(kind, "it", 1, y, tuple(reads[1:]), fields=fields, constants=constants)
    steps.insert(len(types), made)
    x = np.ones((2, 4, 3, 5)[:rank] if rank == 4 else (2, 3, 4)[3 - rank :], np.float32)
    return Program(assemble(values, steps, [0], [len(values) - 1])), x


def test_every_forged_field_of_every_payload_is_refused_or_runs_within_its_memory() -> None:
    torch.manual_seed(0)
    images = whole(Everything(), torch.randn(2, 3, 9, 9))
    values = [
        image(callers=True, nhwc_only=True),
        image(dtype="int8"),
        image(dtype="int8"),
        image(callers=True),
    ]
    constants = {
        "weight": _core.pack_weight(np.ones((1, 1, 1, 1), np.int8)),
        "w_scale": np.ones(1, np.float32),
    }
    steps = [
        Step("conv2d", "to int8", 0, 1, constants=constants),
        Step("avg_pool", "pool", 1, 2, fields={"kh": 2, "kw": 2}),
        Step("conv2d", "to float", 2, 3, constants=constants),
    ]
    average = Program(assemble(values, steps, [0], [3])), np.ones((1, 1, 4, 4), np.float32)
    padded = whole(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3)),
        torch.randn(2, 3, 6, 6),
    )
    tokens = whole(models.TransformerEncoder(24, 1, heads=2), torch.randn(2, 5, 24))
    seen, refused = set[str](), 0
    for program, x in (
        images,
        padded,
        average,
        tokens,
        movers(),
        sizes(),
        words("float32"),
        words("int8"),
        counts(),
        *map(of_one_step, ONE_STEP),
    ):
        for i, row in enumerate(tables(program.data)[2]):
            seen.add(list(kinds())[row["kind"]])
            for forged in forgeries(program.data, i):
                try:
                    Program(forged)(x)
                except (ValueError, MemoryError):
                    refused += 1
    assert seen == set(kinds()), "a kind whose payload nobody forges"
    assert refused > 1000
