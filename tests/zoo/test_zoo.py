"""Models that nobody here wrote: each converts in every scheme, layer by layer right, and survives a file."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_plain
import zoo_timm
import zoo_torchvision
import zoo_transformers
from fake_quant import fake_quantized, float_layer, sqnr_db
from stand_ins import usable
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from zoo_models import ZOO, Batch, ZooModel

import qkernels as qk
from qkernels.nn import QuantModule
from qkernels.nn.registry import float_classes

SCHEMES = ("static", "dynamic", "weight_only")
FILLED = (zoo_plain, zoo_torchvision, zoo_timm, zoo_transformers)  # the table, when imported


@dataclass
class Float:
    entry: ZooModel
    model: nn.Module
    batch: Batch


@dataclass
class Int8(Float):
    int8: nn.Module
    answer: list[Tensor]


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """One for all answers that are compared: what stays in float follows their number."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module", params=ZOO)
def built(request: pytest.FixtureRequest) -> Iterator[Float]:
    with pytest.MonkeyPatch.context() as patch:
        entry = usable(request.param, patch)
        model, batch = entry.build()
        yield Float(entry, model, batch)


@pytest.fixture(scope="module", params=SCHEMES)
def converted(built: Float, request: pytest.FixtureRequest) -> Int8:
    if request.param == "weight_only" and not _has_rows(built.model):
        with pytest.raises(ValueError, match="a convolution has no weight_only form"):
            qk.quantize(built.model, "weight_only")
        pytest.skip("it has convolutions alone, and says so")
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    calibration = built.entry.calibration(built.batch)
    int8 = qk.quantize(built.model, request.param, calibration)
    after = built.model.state_dict()
    assert before.keys() == after.keys() and all(before[k].equal(after[k]) for k in before)
    answer = list(tensors(built.entry.run(int8, built.batch)))
    return Int8(built.entry, built.model, built.batch, int8, answer)


def _has_rows(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Linear | nn.Embedding) for m in model.modules())


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of an answer, whatever holds them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def test_every_layer_with_weights_is_int8_or_has_a_reason(converted: Int8) -> None:
    report = qk.report(converted.int8)
    assert report.converted
    named = {n: layer for layer in report.layers for n in (layer.name, *layer.aliases)}
    for name, module in converted.int8.named_modules(remove_duplicate=False):
        if isinstance(module, QuantModule):
            assert named[name].action == "converted"
        elif any(is_lazy(p) or p.dim() > 1 for p in module.parameters(recurse=False)):
            assert named[name].action == "skipped" and named[name].reason, name
            if (
                type(module) in float_classes()
            ):  # whose int8 form is known, so that little excuses it
                assert re.search("never reached it|has no weight_only form", named[name].reason)


def test_int8_layers_equal_float_layers_on_fake_quantized_input(converted: Int8) -> None:
    levels: dict[str, float] = {}

    def compare(name: str, layer: Any, args: Any, kwargs: Any, got: Tensor) -> None:
        if name in levels:  # later calls are the same function
            return
        x, *rest = (*args, *kwargs.values())
        levels[name] = sqnr_db(float_layer(layer)(fake_quantized(layer, x), *rest), got)

    handles = [
        module.register_forward_hook(
            lambda *call, name=name: compare(name, *call), with_kwargs=True
        )
        for name, module in converted.int8.named_modules()
        if isinstance(module, QuantModule)
    ]
    converted.entry.run(converted.int8, converted.batch)
    for handle in handles:
        handle.remove()
    assert levels
    assert {name: db for name, db in levels.items() if not db > 60} == {}


def test_the_answer_stays_near_the_float_models(converted: Int8) -> None:
    levels = qk.report(converted.int8).sqnr_db
    assert levels
    # boxes come sorted by their scores, so that two of nearly the same score trade places
    compared = {name: db for name, db in levels.items() if not name.endswith(".boxes")}
    assert {name: db for name, db in compared.items() if not db > 10} == {}


def test_a_saved_model_loads_into_a_fresh_one_and_through_a_factory_with_equal_bits(
    converted: Int8, tmp_path: Path
) -> None:
    path = tmp_path / "int8.safetensors"
    qk.save(converted.int8, path)
    for fresh in (converted.entry.make()[0], lambda: converted.entry.make()[0]):
        loaded = qk.load(path, fresh)
        answer = list(tensors(converted.entry.run(loaded, converted.batch)))
        assert len(answer) == len(converted.answer)
        for got, expected in zip(answer, converted.answer, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
