"""Files of every format ever released load forever.

A new format gets a new file: `python tests/quantization/test_old_files.py formatN.safetensors`.
"""

import sys
from pathlib import Path

import pytest
import torch
from nets import ConvNet, conv_net, images
from torch import Tensor

from qkernels.quantization import load, quantize, read_metadata, save
from qkernels.quantization.checkpoint import FORMAT_VERSION

FILES = Path(__file__).parent / "files"


def example() -> Tensor:
    """Fixed without a random generator."""
    return torch.linspace(-2, 2, 2 * 3 * 8 * 8).view(2, 3, 8, 8).sin()


@pytest.mark.parametrize("path", sorted(FILES.glob("*.safetensors")), ids=lambda path: path.name)
def test_a_file_of_an_older_format_loads_and_computes_the_same(path: Path) -> None:
    expected = torch.tensor(read_metadata(path)["extra"]["output"])
    with torch.no_grad():
        torch.testing.assert_close(load(path, ConvNet)(example()), expected, rtol=1e-4, atol=1e-4)


def test_there_is_a_file_of_every_format() -> None:
    formats = {read_metadata(path)["format_version"] for path in FILES.glob("*.safetensors")}
    assert formats == set(range(1, FORMAT_VERSION + 1))


if __name__ == "__main__":
    overrides = {"hidden": {"activation": "dynamic"}}
    model = quantize(conv_net(), {"overrides": overrides}, images(8))
    with torch.no_grad():
        save(model, FILES / sys.argv[1], extra={"output": model(example()).tolist()})
