"""The models of benchmarks/serving.py as a program and as ONNX Runtime's int8: served_models.py FOLDER NAME...

Random weights and calibration as in benchmarks/models.py: speeds do not depend on them. Prints the machine as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from peers.model_problem import ModelProblem
from peers.onnx_model import int8_onnx

import qkernels
from qkernels.machine import describe_machine

PACKAGES = ("onnxruntime", "litserve", "uvicorn", "starlette")


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        problem = ModelProblem(name, 1)
        program, onnx = folder / f"{name}.qkp", folder / f"{name}.onnx"
        if not program.exists():
            int8 = qkernels.quantize(problem.net, "static", problem.calibration)
            qkernels.compile(int8, problem.x).save(program)
        if not onnx.exists():
            shutil.copyfile(int8_onnx(problem), onnx)
    versions = {name: version(name) for name in PACKAGES if find_spec(name)}
    print(json.dumps(describe_machine() | {"contenders": versions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
