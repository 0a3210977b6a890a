"""The models of benchmarks/serving.py as a program and as ONNX Runtime's int8: served_models.py FOLDER NAME...

Random weights and calibration as in benchmarks/models.py: speeds do not depend on them. MiniLM has its trained weights,
where the package with them is installed. Prints the machine as JSON, and why a model has no files.
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
from peers.sentence_problem import SentenceProblem

import qkernels
from qkernels.image_input import ImageInput
from qkernels.measuring.machine import describe_machine

PACKAGES = ("onnxruntime", "litserve", "uvicorn", "starlette")


def make_images(name: str, program: Path, onnx: Path) -> None:
    problem = ModelProblem(name, 1)
    if not program.exists():
        int8 = qkernels.quantize(problem.net, "static", problem.calibration)
        channels, *size = problem.shape
        classes = tuple(map(str, range(problem.expected.shape[1])))
        described = ImageInput(classes, (size[0], size[1]), (0.5,) * channels, (0.25,) * channels)
        qkernels.compile(int8, problem.x).save(program, extra=described.as_extra())
    if not onnx.exists():
        shutil.copyfile(int8_onnx(problem), onnx)


def make_minilm(name: str, program: Path, onnx: Path) -> None:
    """Raises ImportError without the packages, ValueError where it is no single program."""
    problem = SentenceProblem()
    if not program.exists():
        int8 = qkernels.quantize(problem.net, "static", problem.calibration)
        compiled = qkernels.compile(int8, problem.example)
        if compiled.program is None:
            raise ValueError(f"it is no single program: {compiled.report}".splitlines()[0])
        compiled.save(program)
    if not onnx.exists():
        problem.write_int8_onnx(onnx)


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    left_out = {}
    for name in names:
        make = make_minilm if name == "minilm" else make_images
        try:
            make(name, folder / f"{name}.qkp", folder / f"{name}.onnx")
        except (ImportError, ValueError) as error:
            left_out[name] = str(error)
    versions = {name: version(name) for name in PACKAGES if find_spec(name)}
    print(json.dumps(describe_machine() | {"contenders": versions, "left_out": left_out}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
