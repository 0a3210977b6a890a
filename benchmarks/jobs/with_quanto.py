"""The jobs with optimum-quanto, which has no dynamic activations."""

import json
from typing import Any

from . import Case


def static(case: Case) -> Any:
    from optimum.quanto import Calibration, freeze, qint8, quantize

    quantize(case.model, weights=qint8, activations=qint8)
    with Calibration():
        for batch in case.batches:
            case.model(batch)
    freeze(case.model)
    return case.model(case.x)


def exclude(case: Case) -> Any:
    from optimum.quanto import Calibration, freeze, qint8, quantize

    quantize(case.model, weights=qint8, activations=qint8, exclude="4")
    with Calibration():
        for batch in case.batches:
            case.model(batch)
    freeze(case.model)
    return case.model(case.x)


def save_and_load(case: Case) -> Any:
    from optimum.quanto import Calibration, freeze, qint8, quantization_map, quantize, requantize
    from safetensors.torch import load_file, save_file

    quantize(case.model, weights=qint8, activations=qint8)
    with Calibration():
        for batch in case.batches:
            case.model(batch)
    freeze(case.model)
    save_file(case.model.state_dict(), case.folder / "int8.safetensors")
    (case.folder / "map.json").write_text(json.dumps(quantization_map(case.model)))
    same = case.make()
    layers = json.loads((case.folder / "map.json").read_text())
    requantize(same, load_file(case.folder / "int8.safetensors"), layers)
    return same(case.x)
