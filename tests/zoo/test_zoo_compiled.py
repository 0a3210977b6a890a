"""Models that nobody here wrote, compiled: as few programs as the table says, and as near to float as the layers."""

import pytest
import torch
import zoo_plain
import zoo_timm
import zoo_torchvision
import zoo_transformers
from stand_ins import usable
from zoo_models import ZOO, call

import qkernels as qk
from qkernels.graph.program import TorchProgram
from qkernels.modules.outputs import output_sqnrs

FILLED = (zoo_plain, zoo_torchvision, zoo_timm, zoo_transformers)  # the table, when imported


@pytest.mark.parametrize(
    "name", [name for name, entry in ZOO.items() if entry.programs is not None]
)
def test_a_compiled_model_is_as_few_programs_as_expected_and_as_near_to_float_as_its_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = usable(name, monkeypatch)
    model, batch = entry.build()
    int8 = qk.quantize(model, "static", entry.calibration(batch))
    fast = qk.compile(int8, batch)
    programs = sum(isinstance(part, TorchProgram) for part in fast.modules())
    assert programs == entry.programs, fast.report.unfused
    with torch.no_grad():
        answer = call(model, batch)
        layers = output_sqnrs(answer, call(int8, batch))
        compiled = output_sqnrs(answer, call(fast, batch))
    assert {k: db for k, db in compiled.items() if not db > layers[k] - entry.may_lose} == {}
