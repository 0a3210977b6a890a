"""What a person sees of structured pruning, and the times behind it."""

import io
import json

import pytest
import torch
from prune_nets import toy_net
from rich.console import Console

import qkernels as qk
from qkernels import prune


def pruned():
    net = toy_net(32)
    scores = prune.magnitude(prune.weights(net))
    smaller = prune.prune_channels(net, torch.zeros(1, 3, 8, 8), scores, macs=400_000)
    report = qk.report(smaller)
    return net, smaller, report


def test_the_table_names_every_layer_and_what_is_left_of_it() -> None:
    _, _, report = pruned()
    text = str(report)
    assert text.startswith("multiply-adds 649,216 -> ")
    assert "32 -> 16" in text and "channels stayed that fill multiples of 16" in text
    for layer in report.layers:
        assert layer.name in text
    stream = io.StringIO()
    Console(file=stream, width=100).print(report)
    assert "32 -> 16" in stream.getvalue() and "multiples of 16" in stream.getvalue()


def test_the_report_is_json(tmp_path) -> None:
    _, smaller, report = pruned()
    values = json.loads(json.dumps(report.to_dict()))
    assert values["macs"] == list(report.macs)
    smaller_layer = next(layer for layer in values["layers"] if layer["before"] != layer["after"])
    assert values["channels"][smaller_layer["name"]]
    assert values["parameters"][1] == sum(p.numel() for p in smaller.parameters())


def test_times_of_both_models_are_taken_and_shown() -> None:
    net, smaller, report = pruned()
    report.speed = prune.compare_speed(
        net, smaller, torch.randn(8, 3, 8, 8), (3, 8, 8), batch=2, seconds=0.01, rounds=1
    )
    assert list(report.speed) == ["float32", "float32 pruned", "int8", "int8 pruned"]
    assert "int8 pruned, program: " in str(report) and "ms for one image" in str(report)
    json.dumps(report.to_dict())


def test_the_plot_has_a_line_a_report() -> None:
    _, _, report = pruned()
    svg = prune.draw({"one": report, "other": report})
    assert svg.startswith("<svg") and ">one<" in svg and ">other<" in svg


def test_nothing_dropped_is_reported_as_nothing() -> None:
    net = toy_net()
    scores = prune.magnitude(prune.weights(net))
    x = torch.randn(2, 3, 8, 8)
    same = prune.prune_channels(net, x, scores, amount=0.0)
    report = qk.report(same)
    assert report.channels == {} and report.macs[0] == report.macs[1] and report.held == 0
    torch.testing.assert_close(same(x), net.eval()(x))


@pytest.mark.parametrize("width", [4, 8])
def test_a_model_narrower_than_a_panel_stays_and_says_how_to_prune_it(width: int) -> None:
    net = toy_net(width)
    scores = prune.magnitude(prune.weights(net))
    report = qk.report(prune.prune_channels(net, torch.zeros(1, 3, 8, 8), scores, amount=0.5))
    assert report.channels == {} and report.held == width
    assert f"note: {width} channels stayed" in str(report)
