"""Old names and arguments say the present form."""

import importlib

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import prune, quantization
from qkernels.utils.renamed import _NAMES


@pytest.mark.parametrize("old", _NAMES)
def test_an_old_name_says_the_new_one_when_it_is_called(old: str) -> None:
    package, _, name = old.rpartition(".")
    module = importlib.import_module(package)
    assert callable(getattr(module, f"{name}_")) and name not in module.__all__
    with pytest.raises(TypeError, match=rf"^{name} is now {name}_\("):
        getattr(module, name)(nn.Linear(2, 2))


@pytest.mark.parametrize("package", ["models", "nn", "quantization", "recovery"])
def test_a_name_that_never_was_is_an_attribute_error(package: str) -> None:
    module = importlib.import_module(f"qkernels.{package}")
    with pytest.raises(AttributeError, match=rf"'qkernels\.{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


X = torch.zeros(1, 4)
CALLS = {
    "inplace": (qk.quantize, (nn.Linear(4, 4), "dynamic"), "quantize_\\(model, ...\\) works in"),
    "sample": (quantization.scan, (nn.Linear(4, 4), None, X), "its name is example_inputs"),
    "batch": (quantization.layer_errors, (nn.Linear(4, 4),), "its name is example_inputs"),
    "data": (quantization.calibrate, (nn.Linear(4, 4), {}), "its name is calibration"),
    "example": (prune.find_blocks, (nn.Linear(4, 4),), "its name is example_inputs"),
}


@pytest.mark.parametrize("old", CALLS)
def test_an_old_argument_says_the_new_one(old: str) -> None:
    function, args, sentence = CALLS[old]
    with pytest.raises(
        TypeError, match=rf"^{function.__name__}\(\) takes no {old}= any more: {sentence}"
    ):
        function(*args, **{old: X})


def test_an_argument_that_never_was_is_told_as_python_tells_it() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        qk.quantize(nn.Linear(4, 4), nothing=1)
