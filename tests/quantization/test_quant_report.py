import io
import json

import pytest
import torch
from nets import conv_net, images
from torch import nn

import qkernels as qk
from qkernels.quantization import QuantReport, quantize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.up = conv_net(), nn.Conv1d(2, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.fixture
def report() -> QuantReport:
    return qk.report(
        quantize(Net(), {"overrides": {"net.head": {"activation": "dynamic"}}}, images())
    )


def test_sizes_are_those_of_the_tensors(report: QuantReport) -> None:
    entry = report.converted[0]
    assert entry.name == "net.conv1"
    assert entry.bytes_before == 4 * (8 * 3 * 9 + 8)  # with the bias that the fold added
    assert entry.bytes_after == 8 * 3 * 9 + 4 * (8 + 8) + 4 + 4
    assert report.bytes_after < report.bytes_before
    assert report.skipped[0].bytes_after == report.skipped[0].bytes_before == 4 * (12 + 2)


def test_it_is_json(report: QuantReport) -> None:
    values = json.loads(json.dumps(report.to_dict()))
    assert values["config"]["activation"] == "static"
    assert values["folded"][0] == ["net.conv1", "net.bn1"]
    assert [layer["action"] for layer in values["layers"]] == ["converted"] * 4 + ["skipped"]
    assert values["layers"][0]["scheme"]["kind"] == "QuantConv2d"
    assert values["layers"][3]["input_scale"] is None


def test_the_text_names_every_layer_its_fate_and_reason(report: QuantReport) -> None:
    text = str(report)
    assert text.startswith("4 of 5 layers to int8, 3 batch norms folded")
    for words in (
        "net.conv1",
        "int8 static",
        "int8 dynamic",
        "skipped: the calibration data never reached it",
    ):
        assert words in text
    report.notes.append("something else")
    assert str(report).endswith("note: something else")


def test_rich_shows_the_same_rows(report: QuantReport) -> None:
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=160)
    report.notes.append("see [0] and [red]")
    console.print(report)
    text = console.file.getvalue()
    assert all(layer.name in text for layer in report.layers)
    assert "see [0] and [red]" in text


def test_shared_tensors_count_once() -> None:
    fc = nn.Linear(8, 8)
    report = qk.report(quantize(nn.Sequential(fc, fc), "dynamic"))
    assert report.bytes_before == 4 * (64 + 8)
    assert report.bytes_after == 64 + 4 * (8 + 8)
    assert torch.is_tensor(fc.weight)
