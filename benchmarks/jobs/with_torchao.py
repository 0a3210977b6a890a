"""The jobs with torchao."""

from typing import Any

import torch
from torch import nn

from . import Case


def dynamic(case: Case) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(case.model, Int8DynamicActivationInt8WeightConfig())
    return case.model(case.x)


def static(case: Case) -> Any:
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(case.model, (case.x,)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for batch in case.batches:
        prepared(batch)
    int8 = convert_pt2e(prepared)
    move_exported_model_to_eval(int8)
    return int8(case.x)


def exclude(case: Case) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    config = Int8DynamicActivationInt8WeightConfig()
    quantize_(case.model, config, lambda m, name: isinstance(m, nn.Linear) and name != "4")
    return case.model(case.x)


def save_and_load(case: Case) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(case.model, Int8DynamicActivationInt8WeightConfig())
    torch.save(case.model.state_dict(), case.folder / "int8.pt")
    same = case.make()
    state = torch.load(case.folder / "int8.pt", weights_only=False)
    same.load_state_dict(state, assign=True)
    return same(case.x)
