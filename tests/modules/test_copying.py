"""Deep copies of models, and models inside of wrappers."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkernels.modules.copying import copied, unwrapped


class Caching(nn.Module):
    """Keeps what its forward computed, with its history, wherever `keep` puts it."""

    def __init__(self, keep: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.fc, self.keep, self.cache, self.kept = nn.Linear(4, 4), keep, {}, []

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.keep(self, y)
        return y


KEEPS: dict[str, Callable[[Any, Tensor], None]] = {
    "attribute": lambda m, y: setattr(m, "last", y),
    "dict": lambda m, y: m.cache.update(y=y),
    "list": lambda m, y: m.kept.append(y),
    "nested": lambda m, y: m.kept.append({"y": (y, [y])}),
    "on the layer": lambda m, y: setattr(m.fc, "last", (y,)),
}


@pytest.mark.parametrize("keep", KEEPS)
def test_a_model_that_kept_tensors_with_a_history_is_copied(keep: str) -> None:
    model, x = Caching(KEEPS[keep]), torch.ones(2, 4)
    expected = model(x)
    copy, notes = copied(model)
    assert notes == []
    assert torch.equal(copy(x), expected)
    assert copy.fc is not model.fc


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_a_model_whose_weight_is_recomputed_is_copied_after_it_ran(norm: str) -> None:
    model, x = nn.Sequential(getattr(nn.utils, norm)(nn.Linear(4, 4))).eval(), torch.ones(2, 4)
    expected = model(x)
    assert torch.equal(copied(model)[0](x), expected)


def test_a_tensor_that_two_places_keep_is_one_tensor_in_the_copy() -> None:
    model = Caching(KEEPS["nested"])
    model(torch.ones(2, 4))
    kept = copied(model)[0].kept[0]["y"]
    assert kept[0] is kept[1][0]


def test_a_model_that_cannot_be_copied_is_one_sentence() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"Sequential cannot be copied \(.*lock.*quantize_"):
        copied(model)


def test_a_function_that_uses_the_original_is_noted_at_any_depth() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    layer = model[0]
    for value in (lambda x: layer(x), [lambda x, m=layer: m(x)], {"a": (lambda x: layer(x),)}):
        model.step = value
        (note,) = copied(model)[1]
        assert "the model.step" in note and "Linear" in note


def test_what_torch_wraps_around_a_model_is_taken_off_and_noted() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    for wrapped, names in (
        (nn.DataParallel(model), ["DataParallel"]),
        (torch.compile(model), ["OptimizedModule"]),
        (nn.DataParallel(torch.compile(model)), ["DataParallel", "OptimizedModule"]),
        (torch.compile(nn.DataParallel(model)), ["OptimizedModule", "DataParallel"]),
        (model, []),
    ):
        inner, notes = unwrapped(wrapped)
        assert inner is model
        assert [note.split()[0] for note in notes] == names


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.jit.script(nn.Linear(4, 4)), "ScriptModule"),
        (torch.jit.trace(nn.Linear(4, 4), torch.ones(1, 4)), "ScriptModule"),
        (nn.DataParallel(torch.jit.script(nn.Linear(4, 4))), "ScriptModule"),
        ({"weight": torch.ones(2)}, "dict"),
        (torch.ones(2), "Tensor"),
        (nn.Linear, "type"),
        (None, "NoneType"),
        ("model.pt", "str"),
    ],
)
def test_what_is_no_module_or_a_scripted_one_is_refused_by_name(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrapped(model)
