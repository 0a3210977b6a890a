"""Models in half precision: compiled in float32, called with and answering in what they were."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import models
from qkernels.modules.outputs import output_sqnrs

HALF = (torch.bfloat16, torch.float16)


class Tagger(nn.Module):
    """Words in, a logit in half precision and a state in float32 out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.hidden, self.head = nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.hidden(self.norm(self.table(words))))
        return {"logits": self.head(h), "state": h.float()}


@pytest.mark.parametrize("dtype", HALF)
def test_images_in_half_precision_are_answered_in_it_by_one_program(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = models.create("resnet8").eval().to(dtype)
    x = torch.randn(2, 3, 32, 32).to(dtype)
    int8 = qk.quantize(model, "static", [x])
    compiled = qk.compile(int8, x)
    assert compiled.program is not None
    other = torch.randn(5, 3, 32, 32).to(dtype)
    expected, got = int8(other), compiled(other)
    assert got.dtype == dtype
    assert output_sqnrs(expected, got)["output"] > 15
    assert next(iter(int8.parameters())).dtype == dtype  # the model itself stays as it was
    compiled.save(tmp_path / "m.qkp")
    program = qk.program.Program.load(tmp_path / "m.qkp")
    assert torch.equal(torch.from_numpy(program(other.float().numpy())).to(dtype), got)


@pytest.mark.parametrize("dtype", HALF)
def test_each_output_has_the_dtype_that_the_model_gives_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    words = torch.randint(0, 50, (2, 7))
    int8 = qk.quantize(Tagger().eval().to(dtype), "dynamic", example_inputs=words)
    got = qk.compile(int8, words)(words)
    assert {name: y.dtype for name, y in got.items()} == {"logits": dtype, "state": torch.float32}


def test_inputs_of_another_dtype_than_the_examples_are_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8).bfloat16()
    int8 = qk.quantize(nn.Sequential(nn.Linear(8, 4)).eval().bfloat16(), "static", [x])
    compiled = qk.compile(int8, x)
    with pytest.raises(ValueError, match=r"input 0 is torch\.float32 .* a bfloat16 tensor"):
        compiled(x.float())


def test_exact_bits_of_half_precision_and_float64_are_refused() -> None:
    x = torch.randn(2, 8)
    int8 = qk.quantize(nn.Sequential(nn.Linear(8, 4)).eval().half(), "static", [x.half()])
    with pytest.raises(ValueError, match=r"in torch\.float16; with exact=True only a float32"):
        qk.compile(int8, x.half(), exact=True)
    with pytest.raises(ValueError, match="example input 0 is float64"):
        qk.compile(int8, x.double())
