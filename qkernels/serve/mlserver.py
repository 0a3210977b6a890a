"""A program as a runtime of MLServer.

`{"name": "student", "implementation": "qkernels.serve.mlserver.Runtime", "parameters": {"uri": "student.qkp"}}` is its
model-settings.json.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri

from qkernels.serve.errors import RequestError
from qkernels.serve.model import map_program
from qkernels.serve.tensors import Given, arrays
from qkernels.utils.cores import usable_cores
from qkernels.utils.input_size import parse_size


class Runtime(MLModel):
    """Maps the program, so that the worker processes of a machine share its weights, and answers as `qkernels serve`.

    ``parameters.extra.sizes``: of its inputs, such as ["1,3,224,224"], where the file does not say them.
    """

    async def load(self) -> bool:
        """Raises ValueError for what is no program."""
        extra = (self.settings.parameters and self.settings.parameters.extra) or {}
        sizes = tuple(parse_size(text) for text in extra.get("sizes", ()))
        path = Path(await get_model_uri(self.settings))
        opened = await asyncio.to_thread(map_program, path, sizes, usable_cores())
        self._model = await asyncio.to_thread(opened.warm_up, self.settings.max_batch_size or 32)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Raises InferenceError, MLServer's for a request that is wrong."""
        given = [
            Given(
                one.name,
                str(getattr(one.datatype, "value", one.datatype)),
                one.shape,
                _data(one.data.root),
            )
            for one in payload.inputs
        ]
        try:
            inputs = arrays(given, self._model)
        except RequestError as error:
            raise InferenceError(str(error)) from error
        results = await asyncio.to_thread(self._model.run, inputs)
        outputs = [
            NumpyCodec.encode_output(tensor.name, np.asarray(y))
            for tensor, y in zip(self._model.outputs, results, strict=True)
        ]
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs
        )


def _data(root: Any) -> Any:
    return root if isinstance(root, (bytes, list)) else list(root)
