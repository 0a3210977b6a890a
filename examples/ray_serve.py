"""A program on a Ray cluster, asked over HTTP and from Python.

    ray start --head                      # on this machine
    ray start --address=HEAD:6379         # on every further one, with the program at the same path
    python examples/ray_serve.py /models/student.qkp 1,3,32,32

Needs `pip install 'qkernels[ray]' 'tritonclient[http]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import ray
from ray import serve
from tritonclient import http as triton

from qkernels.serve.ray import Arguments, Replica
from qkernels.utils.input_size import parse_size


def main(path: str, size: str, port: str = "8000") -> None:
    ray.init("auto")
    serve.start(http_options={"port": int(port)})
    cores = int(ray.cluster_resources()["CPU"])
    replica = Replica.options(  # one a core to begin with; what has nothing to do goes
        ray_actor_options={"num_cpus": 1},
        autoscaling_config={"min_replicas": 1, "initial_replicas": cores, "max_replicas": cores},
    )
    arguments = Arguments(path=Path(path).resolve(), name="student", size=size)
    handle = serve.run(replica.bind(arguments))

    x = np.random.default_rng(0).standard_normal(parse_size(size), np.float32)
    [answer] = handle.predict.remote(x).result()

    image = triton.InferInput("input", list(x.shape), "FP32")
    image.set_data_from_numpy(x)
    client = triton.InferenceServerClient(f"localhost:{port}")
    over_http = client.infer("student", [image]).as_numpy("output")

    states = serve.status().applications["default"].deployments["Replica"].replica_states
    print(f"replicas {states} on {len(ray.nodes())} nodes")
    print(f"the same bits from Python and over HTTP: {np.array_equal(answer, over_http)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
