"""Transformer encoders as programs: exact ones in parts, the others whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program_bytes import payload, seal, tables, tables_end
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels import models
from qkernels.program import Program

WIDTH, TOKENS = 24, 7


def tokens(batch: int = 2, count: int = TOKENS, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def quantized(model: nn.Module, x: Tensor, activation: str = "static") -> nn.Module:
    return qk.quantize(model.eval(), activation, [x] if activation == "static" else None)


def encoder(activation: str = "static", depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return quantized(models.TransformerEncoder(WIDTH, depth, heads=3), tokens(), activation)


class Perceptron(nn.Module):
    """Linear layers on tokens, with a ReLU, a residual and a second input; exact as a program."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.c = nn.Linear(WIDTH, 5, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.b(torch.relu(self.a(x))) + y
        return z, self.c(z)


@pytest.mark.parametrize("activation", ["static", "dynamic"])
def test_linear_layers_on_tokens_are_one_program_of_the_same_bits(activation: str) -> None:
    torch.manual_seed(0)
    x, y = tokens(), tokens(seed=1)
    calibration = (lambda m: m(x, y)) if activation == "static" else None
    model = qk.quantize(Perceptron().eval(), activation, calibration)
    chained = qk.compile(model, (x, y), exact=True)
    assert chained.program is not None and chained.report.unfused == []
    for batch, count in ((2, TOKENS), (1, 1), (5, 33), (0, 3)):
        x, y = tokens(batch, count, seed=2), tokens(batch, count, seed=3)
        expected = model(x, y)
        for got, want in zip(chained(x, y), expected, strict=True):
            assert torch.equal(got, want) and got.is_contiguous()
        arrays = chained.program.program(np.asfortranarray(x.numpy()), y.numpy())
        assert all(np.array_equal(a, w.numpy()) for a, w in zip(arrays, expected, strict=True))
    assert repr(chained.program.program).startswith("Program([N, T, 24], [N, T, 24] -> [N, T, 24]")
    with pytest.raises(ValueError, match=r"it adds 4 tokens to 3"):
        chained(tokens(2, 3), tokens(2, 4))


@pytest.mark.parametrize("activation", ["static", "dynamic"])
def test_an_encoder_that_need_not_be_exact_is_one_program_and_close(activation: str) -> None:
    model = encoder(activation)
    chained = qk.compile(model, tokens())
    if activation == "static":
        assert chained.program is not None and chained.report.unfused == []
    for batch, count in ((2, TOKENS), (1, 40), (3, 1)):
        x = tokens(batch, count, seed=batch)
        expected = model(x)
        assert (chained(x) - expected).norm() / expected.norm() < 0.03
        assert torch.equal(chained(x)[:1], chained(x[:1]))
    kinds = {step.kind for step in chained.profile(tokens(), runs=1).steps}
    assert {"layer_norm", "attention", "linear"} <= kinds


def test_norms_write_the_int8_that_the_next_layer_reads() -> None:
    chained = qk.compile(encoder(depth=1), tokens())
    steps = {s.name: s for s in chained.profile(tokens(), runs=1).steps}
    assert steps["layers.0.norm1 (layer_norm)"].y == "int8 [2, 7, 24]"
    assert steps["norm (layer_norm)"].y == "float32 [2, 7, 24]"
    attention = steps["layers.0.attention (scaled_dot_product_attention)"]
    assert (attention.x, attention.y) == ("float32 [2, 7, 72]", "int8 [2, 7, 24]")
    assert attention.macs == 2 * 2 * 7 * 7 * 24
    reads = {row.name: row.reads for row in chained.report.layers}
    assert set(reads.values()) == {"int8"}


class Written(nn.Module):
    """Attention as others write it, which is the same to views of indices; or is not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        if self.how in ("chunk", "swapped"):
            thirds = self.qkv(x).chunk(3, -1)
            q, k, v = (thirds[i].view(n, t, 3, -1).transpose(1, 2) for i in range(3))
        elif self.how == "interleaved":
            q, k, v = self.qkv(x).view(n, t, 3, -1).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = self.qkv(x).reshape(n, t, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "swapped":
            q, k = k, q
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.how == "causal")
        return self.out(y.transpose(1, 2).reshape(n, t, c))


@pytest.mark.parametrize("how", ["timm", "chunk", "swapped", "interleaved", "causal"])
def test_attention_is_known_by_what_its_views_do(how: str) -> None:
    torch.manual_seed(0)
    model = quantized(Written(how), tokens())
    chained = qk.compile(model, tokens())
    assert chained.program is not None and chained.report.unfused == []
    x = tokens(3, 9, seed=1)
    assert (chained(x) - model(x)).norm() / model(x).norm() < 0.03


class Apart(nn.Module):
    """A norm between two functions that are torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.erf(self.norm(torch.erf(x))))


def test_steps_without_a_layer_beside_them_stay_torchs() -> None:
    torch.manual_seed(0)
    model, x = quantized(Apart(), tokens()), tokens()
    chained = qk.compile(model, x)
    assert chained.report.unfused == ["erf", "norm (layer_norm)", "erf"]
    assert torch.equal(chained(x), model(x))


# ---- without torch

WITHOUT_TORCH = """
import sys, numpy as np
from qkernels.program import Program
program = Program.load(sys.argv[1], threads=int(sys.argv[4]))
np.save(sys.argv[3], program(np.load(sys.argv[2])))
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    folder = tmp_path_factory.mktemp("encoder")
    chained = qk.compile(encoder(), tokens())
    x = tokens(3, 50, seed=5)
    chained.save(folder / "model.qkp")
    np.save(folder / "x.npy", x.numpy())
    return folder, chained(x)


@pytest.mark.parametrize("isa", ["scalar", "avx2", None])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_encoder_without_torch_gives_the_same_bits_on_every_instruction_set(
    saved: tuple[Path, Tensor], tmp_path: Path, isa: str | None, threads: int
) -> None:
    folder, expected = saved
    names = [str(folder / "model.qkp"), str(folder / "x.npy"), str(tmp_path / "y.npy")]
    environment = os.environ | ({"QKERNELS_MAX_ISA": isa} if isa else {})
    command = [sys.executable, "-c", WITHOUT_TORCH, *names, str(threads)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "y.npy"), expected.numpy())


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 7, 23), r"input 0 is \[2, 7, 23\]; \[N, T, 24\] is needed"),
        ((2, 0, 24), "only the batch may be empty"),
        ((2, 24), r"input 0 is \[2, 24\]; \[N, T, 24\] is needed"),
        ((1, 24, 7, 1), r"\[N, T, 24\] is needed"),
    ],
)
def test_an_input_that_is_no_tokens_is_named(
    saved: tuple[Path, Tensor], shape: tuple[int, ...], sentence: str
) -> None:
    program = Program.load(saved[0] / "model.qkp")
    with pytest.raises(ValueError, match=sentence):
        program(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="tokens is too large"):
        program.steps((1, 2**40, 24))


def forged(program: Program, step: int, **fields: Any) -> np.ndarray:
    """The program with some fields of a step's row or payload changed and its checksum made good."""
    data = program.data.copy()
    row, own = tables(data)[2][step], payload(data, step)
    for name, value in fields.items():
        (row if name in row.dtype.names else own)[name] = value
    seal(data)
    return data


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("layer_norm", {"epsilon": -1.0}, "epsilon is not finite"),
        ("layer_norm", {"epsilon": np.nan}, "epsilon is not finite"),
        ("layer_norm", {"weight": (2**40, 96)}, "its weight lies outside"),
        ("layer_norm", {"bias": (0, 0)}, "its bias lies outside"),
        ("layer_norm", {"weight": (2**10, 92)}, "its weight lies outside"),
        ("layer_norm", {"out_inv_scale": np.inf}, "no scale or zero point"),
        ("attention", {"out_zero": 128}, "no scale or zero point"),
        ("attention", {"exponent": 0.0}, "factor of its scores"),
        ("attention", {"heads": 0}, "its heads have no sizes"),
        ("attention", {"heads": 5}, "its heads have no sizes"),
        ("attention", {"reads": (0, -1, -1, -1)}, "reads fewer values than its kind"),
        ("attention", {"reads": (0, 0, 0, -1)}, "reach beyond the channels"),
        ("layer_norm", {"reads": (0, 0, -1, -1)}, "reads more values than its kind"),
    ],
)
def test_a_forged_step_is_refused(
    saved: tuple[Path, Tensor], kind: str, fields: dict[str, Any], sentence: str
) -> None:
    program = Program.load(saved[0] / "model.qkp")
    kinds = [step["kind"] for step in program.steps((1, 3, 24))]
    with pytest.raises(ValueError, match=sentence):
        Program(forged(program, kinds.index(kind), **fields))


def test_forged_tables_of_an_encoder_are_refused_or_run_within_their_memory(
    saved: tuple[Path, Tensor],
) -> None:
    program = Program.load(saved[0] / "model.qkp")
    end = tables_end(program.data)
    random, refused = np.random.default_rng(0), 0
    for _ in range(1500):
        data = program.data.copy()
        at = int(random.integers(8, end)) // 4 * 4
        value = random.choice([0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**32 - 1])
        data[at : at + 4] = np.frombuffer(np.uint32(value).tobytes(), np.uint8)
        seal(data)
        try:
            Program(data)(np.ones((1, 3, 24), np.float32))
        except (ValueError, MemoryError):
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_of_sequences_are_cut_without_changing_a_bit(threads: int, batch: int) -> None:
    torch.manual_seed(0)
    x = tokens(batch, 60, 96, seed=batch)
    model = quantized(models.TransformerEncoder(96, 1, heads=3), x)
    chained = qk.compile(model, x)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = torch.cat([chained(v) for v in x.split(1)])
    torch.set_num_threads(threads)
    try:
        assert torch.equal(chained(x), one)
    finally:
        torch.set_num_threads(before)
