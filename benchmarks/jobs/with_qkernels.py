"""The jobs with qkernels."""

from typing import Any

from . import Case


def dynamic(case: Case) -> Any:
    import qkernels as qk

    int8 = qk.quantize(case.model, "dynamic")
    return int8(case.x)


def static(case: Case) -> Any:
    import qkernels as qk

    int8 = qk.quantize(case.model, "static", case.batches)
    return int8(case.x)


def exclude(case: Case) -> Any:
    import qkernels as qk

    int8 = qk.quantize(case.model, qk.QuantConfig(exclude=["4"]), case.batches)
    return int8(case.x)


def save_and_load(case: Case) -> Any:
    import qkernels as qk

    int8 = qk.quantize(case.model, "static", case.batches)
    qk.save(int8, case.folder / "int8.safetensors")
    same = qk.load(case.folder / "int8.safetensors", case.make)
    return same(case.x)


def without_torch(case: Case) -> Any:
    import qkernels as qk
    from qkernels.program import Program

    int8 = qk.quantize(case.model, "static", case.batches)
    qk.compile(int8, case.x).save(case.folder / "model.qkp")
    program = Program.load(case.folder / "model.qkp")
    return program(case.x.numpy())
