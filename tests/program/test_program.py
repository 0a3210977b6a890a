"""Programs against the models that they come from, and against bytes that are no program."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program_bytes import seal, tables, tables_end
from torch import Tensor, nn

import qkernels as qk
from qkernels import _core, models, ops, reference
from qkernels.program import Program


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def quantized(model: nn.Module, *x: Tensor, activation: str = "static") -> nn.Module:
    calibration = (lambda m: m(*x)) if activation == "static" else None
    return qk.quantize(model.eval(), {"activation": activation}, calibration)


class Branches(nn.Module):
    """Two inputs, two outputs, a join, a pool of float, a residual, and an image among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(2, 20, 1)
        self.joined = nn.Conv2d(25, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.pool, self.mean = nn.MaxPool2d(2, 1, ceil_mode=True), nn.AdaptiveAvgPool2d(1)
        self.deep, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.cat([torch.relu(self.a(x)), self.b(y)], 1)
        z = self.pool(self.joined(z))
        z = torch.relu(self.deep(z) + z)
        return z, self.head(torch.flatten(self.mean(z), 1))


def branches(activation: str = "static") -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    x = images(2, 3, 12, 9), images(2, 2, 12, 9, seed=1)
    return quantized(Branches(), *x, activation=activation), x


@pytest.mark.parametrize("activation", ["static", "dynamic"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_model_of_branches_is_one_program_of_the_same_bits(
    activation: str, layout: torch.memory_format
) -> None:
    model, x = branches(activation)
    chained = qk.compile(model, x, exact=True)
    assert chained.program is not None and chained.report.unfused == []
    for size in [(2, 12, 9), (1, 7, 7), (5, 16, 5)]:
        n, h, w = size
        x = tuple(images(n, c, h, w, seed=h).contiguous(memory_format=layout) for c in (3, 2))
        expected = model(*(v.contiguous() for v in x))
        for got, want in zip(chained(*x), expected, strict=True):
            assert torch.equal(got, want) and got.is_contiguous()
        arrays = chained.program.program(*(v.numpy() for v in x))
        assert all(np.array_equal(a, w.numpy()) for a, w in zip(arrays, expected, strict=True))


def test_joined_branches_hand_on_int8() -> None:
    model, x = branches()
    layers = {row.name: row for row in qk.compile(model, x, exact=True).report.layers}
    assert layers["a"].writes == layers["b"].writes == layers["joined"].reads == "int8"


def test_a_join_with_a_part_in_float_is_float_and_right() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(torch.cat([y, torch.sigmoid(y)], 1))

    x = images(2, 3, 6, 6)
    model = quantized(Mixed(), x)
    chained = qk.compile(model, x, exact=True)
    assert torch.equal(chained(x), model(x))
    assert chained.report.unfused == ["sigmoid", "cat"]
    assert next(r for r in chained.report.layers if r.name == "a").writes == "float32"


@st.composite
def nets(draw: st.DrawFn) -> tuple[nn.Module, list[int]]:
    """Random chains of everything that a program knows."""
    channels = draw(st.integers(1, 20))
    size = [draw(st.integers(1, 3)), channels, draw(st.integers(9, 14)), draw(st.integers(9, 14))]
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["conv", "depthwise", "relu", "pool", "relu6"]))
        if kind == "relu":
            layers.append(nn.ReLU())
        elif kind == "relu6":
            layers.append(nn.ReLU6())
        elif kind == "pool":
            layers.append(nn.MaxPool2d(draw(st.integers(2, 3)), 1, padding=1))
        else:
            out = channels if kind == "depthwise" else draw(st.sampled_from([1, 7, 16, 33]))
            groups = channels if kind == "depthwise" else 1
            layers.append(
                nn.Conv2d(
                    channels, out, draw(st.integers(1, 3)), draw(st.integers(1, 2)), padding=draw(st.integers(0, 2)),
                    groups=groups, bias=draw(st.booleans()),
                )
            )  # fmt: skip
            channels = out
    layers.append(nn.Conv2d(channels, 5, 1))
    if draw(st.booleans()):
        layers += [
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 4),
            nn.ReLU(),
            nn.Linear(4, 3),
        ]
    return nn.Sequential(*layers), size


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(nets(), st.integers(0, 100))
def test_random_chains_keep_every_bit(drawn: tuple[nn.Module, list[int]], seed: int) -> None:
    net, size = drawn
    torch.manual_seed(seed)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    x = images(*size, seed=seed)
    model = quantized(net, x)
    chained = qk.compile(model, x, exact=True)
    expected = model(x)
    assert torch.equal(chained(x), expected)
    if chained.program is not None:
        assert np.array_equal(chained.program.program(x.numpy()), expected.numpy())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 70, 3, 5), (3, 5, 7, 7), (0, 4, 2, 2)])
def test_the_mean_is_added_in_the_order_of_the_reference(
    size: tuple[int, ...], layout: torch.memory_format
) -> None:
    x = images(*size).contiguous(memory_format=layout)
    assert torch.equal(ops.mean_pool2d(x), reference.mean_pool2d(x))
    torch.library.opcheck(torch.ops.qkernels.mean_pool2d, (x,))


# ---- without torch

WITHOUT_TORCH = """
import sys, numpy as np
from qkernels.program import Program
program = Program.load(sys.argv[1], threads=int(sys.argv[4]))
np.save(sys.argv[3], program(np.load(sys.argv[2])))
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("isa", ["scalar", "avx2", None])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_without_torch_gives_the_same_bits_on_every_instruction_set(
    tmp_path: Path, isa: str | None, threads: int
) -> None:
    torch.manual_seed(0)
    x = images(3, 3, 32, 32)
    model = quantized(models.create("resnet20"), x)
    qk.compile(model, x, exact=True).save(tmp_path / "model.qkp")
    np.save(tmp_path / "x.npy", x.numpy())
    names = [str(tmp_path / n) for n in ("model.qkp", "x.npy", "y.npy")]
    environment = os.environ | ({"QKERNELS_MAX_ISA": isa} if isa else {})
    command = [sys.executable, "-c", WITHOUT_TORCH, *names, str(threads)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "y.npy"), model(x).numpy())


def small_program() -> tuple[Program, Tensor, Tensor]:
    torch.manual_seed(0)
    x = images(2, 3, 10, 10)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )
    model = quantized(net, x)
    chained = qk.compile(model, x, max_batch=4, exact=True)
    assert chained.program is not None
    return chained.program.program, x, model(x)


def test_many_threads_share_one_program() -> None:
    program, x, expected = small_program()
    program.threads = 2
    wrong: list[int] = []

    def call() -> None:
        wrong.extend(not np.array_equal(program(x.numpy()), expected.numpy()) for _ in range(50))

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 200 and not any(wrong)


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (np.zeros((5, 3, 10, 10), np.float32), ValueError, "batches of at most 4"),
        (np.zeros((1, 4, 10, 10), np.float32), ValueError, r"input 0 is \[1, 4, 10, 10\]; \[N, 3, H, W\] is needed"),
        (np.zeros((1, 3), np.float32), ValueError, r"\[N, 3, H, W\] is needed"),
        (np.zeros((1, 3, 10), np.float32), ValueError, r"input 0 is \[1, 3, 10\]; \[N, 3, H, W\] is needed"),
        (np.zeros(3, np.float32), ValueError, "has 1 axes"),
        (np.zeros((1, 3, 10, 10)), TypeError, "dtype float64; float32 is needed"),
        (np.zeros((1, 3, 2, 10), np.float32), ValueError, "window, 3x3, is larger than the padded image, 2x10"),
        (np.zeros((1, 3, 12, 10), np.float32), ValueError, "rows of 256 features, but this image size gives 320"),
    ],
)  # fmt: skip
def test_an_input_that_the_program_does_not_take_is_named(
    x: np.ndarray, error: type[Exception], sentence: str
) -> None:
    program, _, _ = small_program()
    with pytest.raises(error, match=sentence):
        program(x)
    with pytest.raises(ValueError, match="2 inputs were given; the program takes 1"):
        program(x, x)


def test_any_strides_and_an_empty_batch_are_taken() -> None:
    program, x, expected = small_program()
    wide = np.zeros((2, 3, 20, 20), np.float32)
    wide[:, :, ::2, ::2] = x.numpy()
    assert np.array_equal(program(wide[:, :, ::2, ::2]), expected.numpy())
    last = x.numpy().transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    assert np.array_equal(program(last), expected.numpy())
    assert program(x.numpy()[:0]).shape == (0, 10)


# ---- files


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: b[:0], "is empty"),
        (lambda b: b[:40], "fewer than the header"),
        (lambda b: b[:-1], "cut off"),
        (lambda b: b + b"\0", "appended"),
        (lambda b: b"PK" + b[2:], "does not begin as a program does"),
        (
            lambda b: b[:8] + b"\x09\0\0\0" + b[12:],
            f"format version 9, newer than {_core.PROGRAM_VERSION}.*upgrade",
        ),
        (lambda b: b[:8] + b"\x03\0\0\0" + b[12:], "format version 3 .*compile the model again"),
        (lambda b: b[:12] + b"\x01\0\0\0" + b[16:], "compile the model again"),
        (lambda b: b[:-100] + bytes([b[-100] ^ 1]) + b[-99:], "was altered"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_in_one_sentence(
    tmp_path: Path, change: object, sentence: str
) -> None:
    program, _, _ = small_program()
    program.save(tmp_path / "good.qkp")
    (tmp_path / "bad.qkp").write_bytes(change((tmp_path / "good.qkp").read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=sentence):
        Program.load(tmp_path / "bad.qkp")


def test_a_file_keeps_values_beside_the_program_and_the_program_stays_as_it_is(
    tmp_path: Path,
) -> None:
    program, x, expected = small_program()
    assert program.extra == {}
    path = tmp_path / "model.qkp"
    for extra in ({"classes": ["é", "b"], "top1": 0.5}, {}, {"long": "a" * 1000}, {"b": None}):
        program.save(path, extra=extra)
        program = Program.load(path)
        assert program.extra == extra
        assert np.array_equal(program(x.numpy()), expected.numpy())
        program.save(path)
        assert Program.load(path).extra == extra
    for bad in ({"x": np.zeros(1)}, {"x": float("nan")}):
        with pytest.raises(ValueError, match="extra must be JSON-able"):
            program.save(path, extra=bad)
    assert Program.load(path).extra == {"b": None}


@pytest.mark.parametrize("at", [-1, 1, 63, 2**62])
def test_a_forged_place_of_the_extra_values_is_one_sentence(at: int) -> None:
    data = small_program()[0].data.copy()
    tables(data)[0]["extra"] = at
    with pytest.raises(ValueError, match="values kept with the program are no JSON object"):
        _ = Program(data).extra


def test_forged_tables_are_refused_or_run_within_their_memory() -> None:
    """Any four bytes of the tables changed, the checksum made good again: a sentence, or a result, never a crash."""
    program, x, _ = small_program()
    random = np.random.default_rng(0)
    end = tables_end(program.data)
    refused = 0
    for _ in range(3000):
        data = program.data.copy()
        at = int(random.integers(8, end)) // 4 * 4
        value = random.choice(
            [0, 1, 2, 255, 2**16, 2**31 - 1, 2**32 - 1, int(random.integers(2**32))]
        )
        data[at : at + 4] = np.frombuffer(np.uint32(value).tobytes(), np.uint8)
        seal(data)
        try:
            Program(data)(x.numpy())
        except (ValueError, MemoryError):
            refused += 1
    assert refused > 1000


def test_a_model_with_a_part_of_torch_cannot_be_saved_and_says_which(tmp_path: Path) -> None:
    x = images(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    chained = qk.compile(quantized(net, x), x, exact=True)
    with pytest.raises(ValueError, match="left to torch: 1 \\(sigmoid\\)"):
        chained.save(tmp_path / "model.qkp")
    assert list(tmp_path.iterdir()) == []


# ---- as a module


def test_a_compiled_model_can_be_copied_pickled_and_used_under_torch_compile() -> None:
    model, x = branches()
    chained = qk.compile(model, x, exact=True)
    expected = chained(*x)
    file = io.BytesIO()
    torch.save(chained, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(chained), again, torch.compile(chained)):
        assert all(torch.equal(a, b) for a, b in zip(other(*x), expected, strict=True))


def test_memory_stays_near_the_weights_and_the_largest_two_values() -> None:
    torch.manual_seed(0)
    x = images(1, 3, 64, 64)
    model = quantized(models.create("resnet50"), x)
    weights = sum(m.weight.numel() for m in model.modules() if hasattr(m, "weight_size"))
    chained = qk.compile(model, x, exact=True)
    assert chained.program is not None
    program = chained.program.program
    size = (1, 3, 224, 224)
    steps = program.steps(size)
    values = sorted(
        int(np.prod([int(n) for n in step["y"].split("[")[1][:-1].split(",")]))
        * (1 if step["y"].startswith("int8") else 4)
        for step in steps
    )
    assert program.data.nbytes + program.arena_bytes(size) < 1.3 * (weights + sum(values[-2:]))


FOLLOWING = """
import os, sys, numpy as np
from qkernels.program import Program
x = np.zeros((32, 3, 32, 32), np.float32)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def run_one():
    program = Program(np.fromfile(sys.argv[1], np.uint8))
    program(x)
    return program.arena_bytes(x.shape)
for _ in range(4):
    run_one()
before = resident()
for _ in range(16):
    arena = run_one()
print((resident() - before) / arena)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is freed"
)
def test_programs_that_follow_each_other_need_the_memory_of_one(tmp_path: Path) -> None:
    x = images(2, 3, 32, 32)
    qk.compile(quantized(models.create("resnet8"), x), x).save(tmp_path / "net.qkp")
    command = [sys.executable, "-c", FOLLOWING, str(tmp_path / "net.qkp")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert float(done.stdout) < 0.5, "arenas more, of 16"


def test_the_profile_names_every_step_and_draws_them(tmp_path: Path) -> None:
    model, x = branches()
    chained = qk.compile(model, x, exact=True)
    profile = chained.profile(*x, runs=2)
    assert chained.program is not None
    program = chained.program.program
    assert [s.name for s in profile.steps] == [
        s["name"] for s in program.steps(*(v.shape for v in x))
    ]
    assert profile.steps[0].macs == 2 * 12 * 9 * 5 * 27
    profile.plot(tmp_path / "profile.svg")
    assert "joined" in repr(profile) and "joined" in (tmp_path / "profile.svg").read_text()


def test_the_profile_shows_what_is_left_to_torch() -> None:
    x = images(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    profile = qk.compile(quantized(net, x), x, exact=True).profile(x, runs=2)
    assert [s.kind for s in profile.steps] == ["conv2d", "torch", "conv2d"]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_are_cut_by_threads_and_by_cache_without_changing_a_bit(
    threads: int, batch: int
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 40, 1), nn.ReLU(),
        nn.Conv2d(40, 40, 3, 2, 1, groups=40), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 7),
    )  # fmt: skip
    # 64 x 150 x 150 floats are 5.8 MB: one image at a time
    x = images(batch, 3, 150, 150, seed=batch)
    model = quantized(net, x, activation="dynamic")
    chained = qk.compile(model, x, exact=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(chained(x), model(x))
    finally:
        torch.set_num_threads(before)
