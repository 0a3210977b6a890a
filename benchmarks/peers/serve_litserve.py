"""LitServe before a program, raw bytes both ways: serve_litserve.py MODEL.qkp C,H,W PORT THREADS MAX_BATCH."""
# No "from __future__ import annotations": LitServe and FastAPI read the annotations.

import sys
from collections.abc import Sequence
from typing import Annotated

import litserve
import numpy as np
from fastapi import Depends, Request, Response

from qkernels.program import Program


async def raw_bytes(request: Request) -> bytes:
    return await request.body()


class Api(litserve.LitAPI):
    def __init__(self, path: str, size: Sequence[int], threads: int, max_batch: int) -> None:
        # Without a wait its worker looks for requests without a pause, which costs more than the wait.
        super().__init__(max_batch_size=max_batch, batch_timeout=0.01 if max_batch > 1 else 0.0)
        self.path, self.size, self.threads = path, size, threads

    def setup(self, device: object) -> None:
        self.program = Program.load(self.path, self.threads)

    def decode_request(self, request: Annotated[bytes, Depends(raw_bytes)]) -> np.ndarray:
        return np.frombuffer(request, np.float32).reshape(1, *self.size)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.program(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes())


if __name__ == "__main__":
    size = [int(n) for n in sys.argv[2].split(",")]
    port, threads, max_batch = map(int, sys.argv[3:])
    server = litserve.LitServer(Api(sys.argv[1], size, threads, max_batch), fast_queue=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
