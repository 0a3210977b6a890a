"""Dead channels: gone, and the function is the same."""

import copy

import pytest
import torch
from prune_nets import Branches, lively, toy_data, toy_net
from torch import nn

import qkernels as qk
from qkernels import models
from qkernels.distill import TrainConfig, train
from qkernels.prune import Proximal, remove_dead_channels, weights


def images(size: int = 8) -> torch.Tensor:
    return torch.randn(4, 3, size, size)


def assert_same_function(before: nn.Module, after: nn.Module, x: torch.Tensor) -> None:
    """Equal but for the order in which floats are added: 1e-5 of the largest output."""
    expected = before.eval()(x).detach()
    torch.testing.assert_close(after(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_silent_and_unread_channels_go_and_outputs_stay() -> None:
    net = lively(toy_net())
    net[1].weight.data[2], net[1].bias.data[2] = 0, 0  # always 0
    net[3].weight.data[:, 5] = 0  # nobody reads it
    net[4].bias.data[3], net[4].running_mean[3], net[3].weight.data[3] = 0, 0, 0
    smaller = remove_dead_channels(net, images())
    report = qk.report(smaller)
    assert [layer.after for layer in report.layers] == [(6, 3), (7, 6), (2, 7 * 64)]
    assert_same_function(net, smaller, images())


def test_a_channel_that_is_a_constant_but_not_0_stays() -> None:
    net = lively(toy_net())
    net[1].weight.data[2], net[1].bias.data[2] = 0, 0.5
    report = qk.report(remove_dead_channels(net, images()))
    assert report.macs[0] == report.macs[1]


def test_in_a_residual_stream_every_writer_must_be_silent() -> None:
    net = lively(models.create("resnet8"))
    for norm, dead in ((net.bn1, [1, 4]), (net.layer1[0].bn2, [4])):
        norm.weight.data[dead], norm.bias.data[dead] = 0, 0
    for stage, channel in ((net.layer2, 8 + 4), (net.layer3, 16 + 8 + 4)):
        stage[0].bn2.weight.data[channel], stage[0].bn2.bias.data[channel] = 0, 0
    smaller = remove_dead_channels(net, images(32))
    assert smaller.conv1.out_channels == 15 and smaller.linear.in_features == 63
    assert_same_function(net, smaller, images(32))


def test_concatenated_and_flattened_channels_go_with_their_features() -> None:
    net = lively(Branches())
    for conv, dead in ((net.left, [3]), (net.right, [4]), (net.mix, [3, 12])):
        conv.weight.data[dead], conv.bias.data[dead] = 0, 0
    net.norm.weight.data[[3, 12]], net.norm.bias.data[[3, 12]] = 0, 0
    net.deep.bias.data[[3, 12]] = 0
    smaller = remove_dead_channels(net, images())
    assert (smaller.left.out_channels, smaller.right.out_channels) == (7, 7)
    assert smaller.head.in_features == 14 * 4
    assert_same_function(net, smaller, images())


def test_training_with_l1_kills_neurons_and_removing_them_changes_nothing() -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    config = TrainConfig(epochs=15, batch_size=16, lr=0.05, augment=False, weight_decay=0.0)
    hook = Proximal(weights(net, biases=True), l1=0.1)
    train(net, toy_data(), config, after_step=hook, progress=False)
    smaller = remove_dead_channels(net, images())
    report = qk.report(smaller)
    assert report.layers[0].after[0] < 32 and report.macs[1] < 0.8 * report.macs[0]
    assert_same_function(net, smaller, images())


def test_a_layer_whose_channels_are_all_dead_keeps_one() -> None:
    net = lively(toy_net())
    net[1].weight.data[:], net[1].bias.data[:] = 0, 0
    smaller = remove_dead_channels(net, images())
    assert smaller[0].out_channels == 1
    assert_same_function(net, smaller, images())


def test_an_activation_that_does_not_keep_0_is_noticed() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    net[0].weight.data[1], net[0].bias.data[1] = 0, 0
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="answers differently"):
        remove_dead_channels(net, torch.randn(2, 3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
