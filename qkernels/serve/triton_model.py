"""model.py of a Triton model repository: runs the program beside it, without torch in the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from qkernels.program import Program
from qkernels.utils.cores import usable_cores


class TritonPythonModel:
    """One instance, a process of its own. It maps the program, so that all instances share the weights."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        instances = sum(group["count"] for group in config["instance_group"])
        threads = max(1, usable_cores() // instances)
        folder = Path(args["model_repository"], args["model_version"])
        self._program = Program.load(folder / "model.qkp", threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """What the dynamic batcher has gathered runs as one call."""
        asked = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        try:
            return self._answers(asked)
        except ValueError as error:  # such as an id that is none, which is one request's fault
            if len(asked) == 1:
                return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error)))]
            return [answer for request in requests for answer in self.execute([request])]

    def _answers(self, asked: list[list[Any]]) -> list[Any]:
        results = self._program(*(np.concatenate(column) for column in zip(*asked, strict=True)))
        if len(self._outputs) == 1:
            results = [results]
        ends = np.cumsum([len(inputs[0]) for inputs in asked])[:-1]
        answers = zip(*(np.split(y, ends) for y in results), strict=True)
        return [
            pb_utils.InferenceResponse(
                output_tensors=list(map(pb_utils.Tensor, self._outputs, answer))
            )
            for answer in answers
        ]
