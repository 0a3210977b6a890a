"""A model as the protocol's model-configuration extension describes it."""

from __future__ import annotations

from typing import Any

from qkernels.serve.batching import Batcher
from qkernels.serve.model import Tensor


def model_config(name: str, versions: list[str], batcher: Batcher) -> dict[str, Any]:
    """The fields of inference.ModelConfig, as JSON has them."""
    model, settings = batcher.model, batcher.settings

    def described(ends: tuple[Tensor, ...]) -> list[dict[str, Any]]:
        return [{"name": t.name, "data_type": f"TYPE_{t.datatype}", "dims": t.dims} for t in ends]

    return {
        "name": name,
        "platform": model.platform,
        "backend": "qkernels",
        "version_policy": {"specific": {"versions": [int(v) for v in versions if v.isdecimal()]}},
        "max_batch_size": model.max_batch,
        "input": described(model.inputs),
        "output": described(model.outputs),
        "instance_group": [{"name": name, "kind": "KIND_CPU", "count": settings.workers}],
        "dynamic_batching": {
            "preferred_batch_size": [model.max_batch],
            "max_queue_delay_microseconds": round(settings.max_delay * 1e6),
            "default_queue_policy": {
                "max_queue_size": settings.queue,
                "default_timeout_microseconds": round(settings.timeout * 1e6),
                "allow_timeout_override": True,
            },
        },
        "parameters": {
            "threads": {"string_value": str(settings.threads)},
            "checksum": {"string_value": model.version},
        },
    }
