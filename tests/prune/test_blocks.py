"""Dropping whole blocks: which can go, which go first, and the file that rebuilds what is left."""

import copy

import pytest
import torch
from prune_nets import lively, toy_net
from torch import nn

import qkernels
from qkernels import models, prune
from qkernels.measuring.costs import count_macs
from qkernels.models.channels import changes, sizes

IMAGES = (3, 32, 32)
X = torch.zeros(1, *IMAGES)


def resnet() -> nn.Module:
    """ResNet-20 of which one block does nothing and one does much."""
    net = lively(models.create("resnet20"))
    for name, scale in (("layer1.1", 0.0), ("layer2.1", 3.0)):
        norm = net.get_submodule(name).bn2
        norm.weight.data *= scale
        norm.bias.data *= scale
    return net


def test_blocks_that_keep_their_shape_are_found_and_no_others() -> None:
    stages = [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(3)]
    assert prune.find_blocks(resnet().train(), X) == [
        b for b in stages if b not in ("layer2.0", "layer3.0")
    ]
    mobile = prune.find_blocks(models.create("mobilenet_v2", width_mult=0.25), X)
    assert {"features.3", "features.5"} < set(mobile)
    assert not any(a != b and b.startswith(f"{a}.") for a in mobile for b in mobile)


def test_the_block_that_does_nothing_goes_first_and_its_loss_is_that_of_the_model() -> None:
    net = resnet()
    batches = [(torch.randn(16, *IMAGES), torch.arange(16) % 10) for _ in range(2)]
    before = copy.deepcopy(net.state_dict())
    losses = prune.block_losses(net, prune.find_blocks(net, X), batches)
    with torch.no_grad():
        whole = sum(float(nn.functional.cross_entropy(net(x), y)) for x, y in batches) / 2
    assert losses["layer1.1"] == pytest.approx(whole, abs=1e-5)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    smaller = prune.drop_blocks(
        net, X, {"layer1.1": 0.0, "layer2.1": 1.0}, macs=report_macs(net) - 1
    )
    report = qkernels.report(smaller)
    assert isinstance(smaller.layer1[1], nn.Identity) and not isinstance(
        smaller.layer2[1], nn.Identity
    )
    x = torch.randn(2, *IMAGES)
    torch.testing.assert_close(smaller(x), net(x))
    assert report.channels == {"layer1.1": {}}
    assert report.macs == (report_macs(net), report_macs(smaller))
    assert [layer.name for layer in report.layers if layer.after == (0, 0)] == [
        "layer1.1.conv1",
        "layer1.1.conv2",
    ]


def report_macs(net: nn.Module) -> int:
    return count_macs(net, IMAGES)


def test_blocks_then_channels_quantize_and_come_back_from_their_file(tmp_path) -> None:
    net = resnet()
    fewer = prune.drop_blocks(
        net, X, {"layer1.1": 0.0, "layer3.2": 0.0}, macs=int(0.8 * report_macs(net))
    )
    first = qkernels.report(fewer)
    scores = prune.magnitude(prune.weights(fewer))
    smaller = prune.prune_channels(fewer, X, scores, macs=int(0.6 * report_macs(net)))
    second = qkernels.report(smaller)
    channels = changes(sizes(net), smaller)
    assert channels.keys() == first.channels.keys() | second.channels.keys()
    int8 = qkernels.quantize(smaller, "static", torch.randn(8, *IMAGES))
    qkernels.save(
        int8, tmp_path / "int8", architecture={"name": "resnet20", "kwargs": {"channels": channels}}
    )
    x = torch.randn(2, *IMAGES)
    assert torch.equal(qkernels.load(tmp_path / "int8")(x), int8(x))


def test_targets_out_of_reach_and_unknown_blocks_are_one_sentence() -> None:
    net = resnet()
    with pytest.raises(
        ValueError, match=r"macs=1,000 cannot be reached: [\d,]+ are left without all 1 blocks"
    ):
        prune.drop_blocks(net, X, {"layer1.1": 0.0}, macs=1000)
    with pytest.raises(ValueError, match=r"no layer 'layer1.9' to prune; the nearest: layer1"):
        prune.drop_blocks(net, X, {"layer1.9": 0.0}, macs=1000)
    assert prune.find_blocks(toy_net(), torch.zeros(1, 3, 8, 8)) == []
