"""The jobs with NNCF and OpenVINO."""

from typing import Any

from . import Case


def dynamic(case: Case) -> Any:
    import nncf
    import openvino as ov

    model = ov.convert_model(case.model, example_input=case.x)
    small = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    int8 = ov.compile_model(small, "CPU", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32})
    return int8(case.x.numpy())[0]


def static(case: Case) -> Any:
    import nncf
    import openvino as ov

    model = ov.convert_model(case.model, example_input=case.x)
    small = nncf.quantize(model, nncf.Dataset([batch.numpy() for batch in case.batches]))
    int8 = ov.compile_model(small, "CPU")
    return int8(case.x.numpy())[0]


def exclude(case: Case) -> Any:
    import nncf
    import openvino as ov

    model = ov.convert_model(case.model, example_input=case.x)
    scope = nncf.IgnoredScope(names=[model.get_ordered_ops()[-4].get_friendly_name()])
    data = nncf.Dataset([batch.numpy() for batch in case.batches])
    small = nncf.quantize(model, data, ignored_scope=scope)
    int8 = ov.compile_model(small, "CPU")
    return int8(case.x.numpy())[0]


def save_and_load(case: Case) -> Any:
    import nncf
    import openvino as ov

    model = ov.convert_model(case.model, example_input=case.x)
    small = nncf.quantize(model, nncf.Dataset([batch.numpy() for batch in case.batches]))
    ov.save_model(small, case.folder / "int8.xml")
    same = ov.compile_model(case.folder / "int8.xml", "CPU")
    return same(case.x.numpy())[0]


without_torch = save_and_load  # its runtime needs none
