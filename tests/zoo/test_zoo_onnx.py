"""Models that nobody here wrote, as ONNX files: ONNX Runtime answers as the int8 model does, or a refusal says why."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zoo_plain  # noqa: F401  fills the table, as the next three do
import zoo_timm  # noqa: F401
import zoo_torchvision  # noqa: F401
import zoo_transformers  # noqa: F401
from exact_runtime import exact_session
from stand_ins import usable
from torch.utils import _pytree as pytree
from zoo_models import ZOO

import qkernels as qk
from qkernels.modules.calling import example_call
from qkernels.modules.outputs import output_sqnrs, output_tensors

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

HAVE_NO_GRAPH = {  # their forwards answer with a cache, or branch on values
    "gpt2", "llama", "whisper", "t5", "fasterrcnn_mobilenet_v3_large_320_fpn",
}  # fmt: skip
LEAST = 20.0  # dB; both round, in other places


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.mark.parametrize("name", ZOO)
def test_onnx_runtime_answers_what_the_int8_model_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = usable(name, monkeypatch)
    model, batch = entry.build()
    int8 = qk.quantize(model, "static", entry.calibration(batch))
    path = tmp_path / "m.onnx"
    if name in HAVE_NO_GRAPH:
        with pytest.raises(ValueError, match=r"cannot be exported to ONNX: .+"):
            qk.export_onnx(int8, batch, path)
        return
    qk.export_onnx(int8, batch, path)
    session = exact_session(path)
    call = example_call(batch)
    tensors = pytree.tree_leaves((call.args, call.kwargs))
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), tensors, strict=True)}
    with torch.no_grad():
        expected = [x for _, x in output_tensors(call.run(int8))]
    for x, y in zip(expected, session.run(None, feed), strict=True):
        assert output_sqnrs(x, torch.from_numpy(y))["output"] > LEAST
