"""A program behind KServe's own model server: `python -m qkernels.serve.kserve --model_name student --program FILE`.

Its flags are KServe's (ports, workers, TLS), with ``--program`` and, where the file does not say it, ``--size``.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput

from qkernels.serve.errors import RequestError
from qkernels.serve.model import map_program
from qkernels.serve.tensors import Given, arrays
from qkernels.utils.cores import usable_cores
from qkernels.utils.input_size import parse_size


class Runtime(Model):
    """Answers as `qkernels serve` does; KServe brings the protocols, and no batches."""

    def __init__(self, name: str, program: Path, sizes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(name)
        self._program, self._sizes = program, sizes

    def load(self) -> bool:
        """Raises ValueError for what is no program."""
        opened = map_program(self._program, self._sizes, usable_cores())
        self._model = opened.warm_up(32)
        self.ready = True
        return self.ready

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: Any = None
    ) -> InferResponse:
        """Raises InvalidInput, KServe's for a request that is wrong."""
        if not isinstance(payload, InferRequest):
            raise InvalidInput("the Open Inference Protocol v2 is needed")
        given = [
            Given(one.name, one.datatype, one.shape, one.as_numpy().ravel())
            for one in payload.inputs
        ]
        try:
            inputs = arrays(given, self._model)
        except RequestError as error:
            raise InvalidInput(str(error)) from error
        results = await asyncio.to_thread(self._model.run, inputs)
        outputs = []
        for tensor, y in zip(self._model.outputs, results, strict=True):
            output = InferOutput(tensor.name, list(y.shape), "FP32")
            output.set_data_from_numpy(y, binary_data=False)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--size", action="append", default=[])
    given, _ = parser.parse_known_args()
    runtime = Runtime(given.model_name, given.program, tuple(parse_size(s) for s in given.size))
    runtime.load()
    ModelServer().start([runtime])
