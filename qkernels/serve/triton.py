"""A program as a model of Triton Inference Server: a folder of its model repository, for the Python backend."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qkernels.serve.model import Model, Tensor, map_program
from qkernels.utils.input_size import Size


def write_triton_model(
    program: Path, folder: Path, sizes: Sequence[Size] = (), max_batch: int = 32
) -> Model:
    """Write ``folder``, whose name is the model's: config.pbtxt, and 1/ with the program and the model.py that runs it.

    ``sizes`` [N, C, H, W] or [N, C] of each input, whose N is only an example; none: they follow from the program.
    ``max_batch`` holds where the program says nothing less. Returns the model, which has run.

    Raises ValueError for a file that is no program, for images or ids whose size nobody has said, and for a name that
    Triton has trouble with; FileExistsError where the folder is there already.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", folder.name, re.ASCII):
        raise ValueError(
            f"the folder's name {folder.name!r} is the model's: letters, digits, _ . -"
        )
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: remove it, or write to another folder")
    model = map_program(program, sizes, threads=1).warm_up(max_batch)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as aside:
        version = Path(aside) / folder.name / "1"
        version.mkdir(parents=True)
        version.with_name("config.pbtxt").write_text(_config(folder.name, model))
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), version / "model.py")
        shutil.copyfile(program, version / "model.qkp")
        version.parent.rename(folder)
    return model


def _config(name: str, model: Model) -> str:
    """inference.ModelConfig in protobuf's text form; its batches, queue and warm-up are those of `qkernels serve`."""
    ends = [("input", t) for t in model.inputs] + [("output", t) for t in model.outputs]
    tensors = "\n".join(f'{kind} {{ name: "{t.name}" {_type(t, t.dims)} }}' for kind, t in ends)
    zeros = " ".join(
        f'inputs {{ key: "{t.name}" value {{ {_type(t, t.size)} zero_data: true }} }}'
        for t in model.inputs
    )
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: {model.max_batch}
{tensors}
# An instance is a process; the cores that the server may use are shared out among them.
instance_group {{ count: 1 kind: KIND_CPU }}
# What waits for an instance runs together.
dynamic_batching {{
  default_queue_policy {{
    max_queue_size: 256
    default_timeout_microseconds: 10000000
    allow_timeout_override: true
  }}
}}
model_warmup {{ name: "largest" batch_size: {model.max_batch} {zeros} }}
model_warmup {{ name: "smallest" batch_size: 1 {zeros} }}
"""


def _type(tensor: Tensor, dims: Sequence[int]) -> str:
    return f"data_type: TYPE_{tensor.datatype} dims: {list(dims)}"
