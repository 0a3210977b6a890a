"""Structured pruning: the right channels disappear everywhere at once, and nothing else changes."""

import copy
from functools import partial

import pytest
import torch
from prune_nets import Branches, lively, toy_net
from torch import Tensor, nn
from torch.nn.functional import pad

import qkernels
from qkernels import models, prune
from qkernels.measuring.costs import count_macs
from qkernels.models.channels import sizes
from qkernels.prune.groups import ChannelGraph

NETS = {
    "resnet20": lambda: models.create("resnet20"),
    "mobilenet_v2": lambda: models.create("mobilenet_v2", num_classes=10, width_mult=0.25),
    "tutorial_cnn": lambda: models.create("tutorial_cnn", width=16),
    "resnet18": lambda: models.create("resnet18", num_classes=10, width=8),
    "resnet50": lambda: models.create("resnet50", num_classes=10, width=8),
    "branches": Branches,
}
IMAGES = (3, 32, 32)
prune_channels = partial(prune.prune_channels, multiple=1)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *IMAGES, generator=torch.Generator().manual_seed(1))


def magnitudes(net: nn.Module) -> prune.Scores:
    return prune.magnitude(prune.weights(net))


def without_reading(model: nn.Module, dropped: dict) -> nn.Module:
    """The model as it is, but that nothing reads the dropped channels."""
    model = copy.deepcopy(model)
    for group, positions in dropped.items():
        for member in group.members:
            if member.side == "in":
                gone = member.index[torch.isin(member.channel, positions)]
                model.get_submodule(member.layer).weight.data[:, gone] = 0
    return model


@pytest.mark.parametrize("name", NETS)
def test_a_pruned_model_answers_like_one_that_reads_nothing_of_the_channels(name: str) -> None:
    net = lively(NETS[name]())
    graph = ChannelGraph(net, images())
    dropped = {
        group: torch.randperm(group.channels)[: group.channels // 3] for group in graph.groups
    }
    expected = without_reading(net, dropped)(images()).detach()
    before = sizes(net)
    got = graph.remove(dropped)(images())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert sizes(net) == before


@pytest.mark.parametrize("name", [n for n in NETS if n != "branches"])
def test_every_convolution_but_those_at_the_ends_gets_fewer_channels(name: str) -> None:
    net = NETS[name]()
    smaller = prune_channels(net, images(1), magnitudes(net), amount=0.5, scope="layer")
    report = qkernels.report(smaller)
    for layer in report.layers:
        weight = smaller.get_submodule(layer.name).weight
        assert tuple(weight.shape[:2]) == layer.after
        assert layer.after[0] == layer.before[0] // 2 or layer.after[0] == 10
    assert report.layers[-1].after[0] == 10 and report.layers[0].after[1] == 3
    assert report.macs == (count_macs(net, IMAGES), count_macs(smaller, IMAGES))
    assert report.macs[1] < 0.4 * report.macs[0]
    assert report.parameters[1] == sum(p.numel() for p in smaller.parameters())


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "tutorial_cnn"])
def test_a_pruned_model_quantizes_and_is_rebuilt_from_its_file(name: str, tmp_path) -> None:
    kwargs = {
        "resnet20": {},
        "mobilenet_v2": {"num_classes": 10, "width_mult": 0.25},
        "tutorial_cnn": {"width": 16},
    }[name]
    net = lively(models.create(name, **kwargs))
    smaller = prune_channels(net, images(1), magnitudes(net), amount=0.4)
    report = qkernels.report(smaller)
    int8 = qkernels.quantize(smaller, "static", images(8))
    architecture = {"name": name, "kwargs": {**kwargs, "channels": report.channels}}
    for kind, model in (("float", smaller), ("int8", int8)):
        qkernels.save(model, tmp_path / kind, architecture=architecture)
        loaded = qkernels.load(tmp_path / kind)
        assert torch.equal(loaded(images()), model(images()))
    chained = qkernels.compile(int8, images(), exact=True)
    assert torch.equal(chained(images()), int8(images()))


def test_the_float_answer_of_a_rebuilt_model_needs_no_pruning_library(
    tmp_path, monkeypatch
) -> None:
    net = models.create("resnet8")
    smaller = prune_channels(net, images(1), magnitudes(net), amount=0.4)
    report = qkernels.report(smaller)
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    again = models.create("resnet8", channels=report.channels)
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again.eval()(images()), smaller(images()))
    with pytest.raises(ImportError, match=r'pip install "qkernels\[prune\]"'):
        prune_channels(net, images(1), magnitudes(net), amount=0.4)


def test_least_scores_go_first_and_the_order_can_be_turned_round() -> None:
    net = toy_net()
    scores = {"0.weight": torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 3, 3)}
    kept = {}
    for order in ("lowest", "highest"):
        smaller = prune_channels(
            net,
            torch.randn(1, 3, 8, 8),
            scores,
            amount=0.5,
            scope="layer",
            order=order,
            ignore=["3"],
        )
        kept[order] = smaller[0].weight
    assert torch.equal(kept["lowest"], net[0].weight[4:])
    assert torch.equal(kept["highest"], net[0].weight[:4])


def test_a_constant_channel_goes_first_by_entropy() -> None:
    net = lively(toy_net()).train()
    net[1].weight.data[5], net[1].bias.data[5] = (
        0.0,
        2.0,
    )  # says 2 about every image, with large weights
    net[0].weight.data[5] = 9.0
    smaller = prune_channels(
        net.eval(),
        torch.randn(1, 3, 8, 8),
        prune.entropy(net, torch.randn(64, 3, 8, 8)),
        amount=1 / 8,
        scope="layer",
        ignore=["3"],
    )
    kept = [0, 1, 2, 3, 4, 6, 7]
    assert torch.equal(smaller[0].weight, net[0].weight[kept])
    assert torch.equal(smaller[3].weight, net[3].weight[:, kept])


def test_group_scores_rank_as_those_of_torch_pruning() -> None:
    import torch_pruning as library

    from qkernels.prune.selection import channel_scores

    net = models.create("resnet8").requires_grad_(True)
    graph = library.DependencyGraph().build_dependency(net, (images(1),))
    conv = net.layer1[0].conv1
    items = graph.get_pruning_group(conv, library.prune_conv_out_channels, list(range(16)))
    theirs = library.importance.GroupMagnitudeImportance(p=2, normalizer=None)(items)
    group = next(g for g in ChannelGraph(net, images(1)).groups if g.name == "layer1.0.conv1")
    scores = magnitudes(net) | prune.magnitude(prune.gammas(net))
    torch.testing.assert_close(
        channel_scores(group, scores), theirs * 3
    )  # 3 members, they take the mean


def test_a_global_amount_takes_more_from_layers_that_matter_less() -> None:
    net = toy_net()
    net[3].weight.data *= torch.linspace(0.01, 1, 8).view(8, 1, 1, 1)
    net[7].weight.data.view(2, 8, 64).mul_(torch.linspace(0.01, 1, 8).view(8, 1))
    report = qkernels.report(
        prune_channels(net, torch.randn(1, 3, 8, 8), magnitudes(net), amount=0.3)
    )
    assert report.layers[0].after[0] > report.layers[1].after[0]


def test_slimming_drops_exactly_the_channels_whose_scale_is_0() -> None:
    net = lively(toy_net())
    net[1].weight.data[[1, 4, 6]] = 0
    smaller = prune_channels(
        net,
        torch.randn(1, 3, 8, 8),
        prune.magnitude(prune.gammas(net)),
        amount=3 / 16,
        relative=False,
    )
    report = qkernels.report(smaller)
    assert report.layers[0].after == (5, 3) and report.layers[1].after == (8, 5)
    assert torch.equal(smaller[1].weight, net[1].weight[[0, 2, 3, 5, 7]])


def test_by_default_panels_of_the_kernels_stay_whole() -> None:
    net = models.create("resnet20")
    report = qkernels.report(prune.prune_channels(net, images(1), magnitudes(net), amount=0.3))
    assert {layer.after[0] for layer in report.layers} <= {16, 32, 48, 64, 10}
    assert report.macs[1] < report.macs[0]


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_a_target_of_multiply_adds_is_met_with_little_to_spare(share: float) -> None:
    net = models.create("resnet20")
    target = int(share * count_macs(net, IMAGES))
    smaller = prune_channels(net, images(1), magnitudes(net), macs=target)
    report = qkernels.report(smaller)
    assert 0.93 * target < count_macs(smaller, IMAGES) == report.macs[1] <= target


def test_what_is_left_is_a_multiple_and_the_report_says_so() -> None:
    net = models.create("resnet20")
    target = int(0.5 * count_macs(net, IMAGES))
    smaller = prune_channels(net, images(1), magnitudes(net), macs=target, multiple=8)
    report = qkernels.report(smaller)
    convs = [m for m in smaller.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % 8 == 0 for conv in convs)
    assert count_macs(smaller, IMAGES) <= target
    assert report.held > 0 and f"{report.held} channels stayed that fill multiples of 8" in str(
        report
    )


def test_ignored_layers_and_those_coupled_with_them_keep_their_channels() -> None:
    net = models.create("resnet20")
    report = qkernels.report(
        prune_channels(
            net, images(1), magnitudes(net), amount=0.5, scope="layer", ignore=["conv1", "layer3"]
        )
    )
    after = {layer.name: layer.after[0] for layer in report.layers}
    assert after["conv1"] == after["layer1.2.conv2"] == 16 and after["layer3.0.conv1"] == 64
    assert after["layer1.0.conv1"] == 8 and after["layer2.0.conv1"] == 16
    assert after["layer2.0.conv2"] == 32  # its channels reach layer3 through the shortcut


class Cut(nn.Module):
    """Channels that the forward splits by number, and channels that are added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.same = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 3, 1)
        self.free, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.wide(x).split([4, 4], 1)
        return self.last(self.free(torch.relu(self.same(a * b))))


def test_channels_that_the_forward_counts_stay_and_the_report_says_why() -> None:
    net = Cut()
    report = qkernels.report(
        prune_channels(net, torch.randn(1, 3, 4, 4), magnitudes(net), amount=0.5)
    )
    after = {layer.name: layer.after[0] for layer in report.layers}
    assert after["wide"] == 8 and after["free"] < 6 and after["last"] == 2
    assert any(
        "wide keeps its channels: the forward has their number" in note for note in report.notes
    )
    assert "note: wide keeps" in str(report)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.conv(x))


def test_a_model_that_no_longer_runs_is_refused_and_the_original_is_whole() -> None:
    net = Skip()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError, match=r"Skip has no channels to prune: conv keeps .*does not run"
    ):
        prune_channels(net, torch.randn(1, 3, 4, 4), magnitudes(net), amount=0.4)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net(torch.randn(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (toy_net, {"amount": 1.0}, r"amount=1.0 must be in \[0, 1\)"),
        (toy_net, {"amount": -0.5}, r"amount=-0.5 must be in \[0, 1\)"),
        (toy_net, {}, "either an amount or macs"),
        (toy_net, {"amount": 0.5, "macs": 9}, "either an amount or macs"),
        (toy_net, {"amount": 0.5, "multiple": 0}, "multiple=0 must be at least 1"),
        (toy_net, {"amount": 0.5, "scope": "all"}, "scope='all'"),
        (toy_net, {"amount": 0.5, "order": "up"}, "order='up'"),
        (toy_net, {"amount": 0.5, "ignore": ["4x"]}, "no layer '4x' to prune; the nearest: "),
        (toy_net, {"amount": 0.95}, r"amount=0.95 would take all 8 channels of \d: lower it"),
        (
            toy_net,
            {"macs": 100},
            r"macs=100 cannot be reached: 2,432 are left when every layer keeps its last 1",
        ),
        (
            toy_net,
            {"amount": 0.5, "ignore": ["0", "3"]},
            "has no channels to prune: those of its inputs and outputs stay",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_the_model_is_whole(make, settings, message: str) -> None:
    net = make()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        prune_channels(net, torch.randn(1, 3, 8, 8), magnitudes(net), **settings)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net(torch.randn(2, 3, 8, 8))


def test_an_int8_model_is_sent_back_to_its_float_form() -> None:
    net = toy_net().eval()
    int8 = qkernels.quantize(net, calibration=torch.randn(4, 3, 8, 8))
    with pytest.raises(
        ValueError, match="has int8 layers: prune the float model, then quantize it"
    ):
        prune_channels(int8, torch.randn(1, 3, 8, 8), magnitudes(net), amount=0.5)


def test_an_example_that_the_model_does_not_take_is_named() -> None:
    net = toy_net()
    with pytest.raises(ValueError, match="Sequential cannot be traced to prune it"):
        prune_channels(net, torch.randn(1, 4, 8, 8), magnitudes(net), amount=0.5)


def test_scores_that_say_nothing_about_a_group_are_refused() -> None:
    net = toy_net()
    with pytest.raises(ValueError, match="the scores say nothing about 3"):
        prune_channels(
            net, torch.randn(1, 3, 8, 8), {"0.weight": net[0].weight.detach().abs()}, amount=0.1
        )


def test_a_model_in_training_with_frozen_layers_is_left_and_given_back_that_way() -> None:
    net = toy_net().train()
    net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        smaller = prune_channels(net, torch.randn(2, 3, 8, 8), magnitudes(net), amount=0.5)
    assert net.training and not net[0].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not smaller[0].weight.requires_grad and smaller[3].weight.requires_grad


def test_narrow_names_what_it_does_not_know() -> None:
    with pytest.raises(
        ValueError, match=r"no module 'layer1\.0\.conv3' with out_channels; the nearest"
    ):
        models.create("resnet8", channels={"layer1.0.conv3": {"out_channels": 3}})
    with pytest.raises(ValueError, match=r"conv1\.out_channels=0 must be at least 1"):
        models.create("resnet8", channels={"conv1": {"out_channels": 0}})


def test_the_shortcut_of_a_pruned_resnet_puts_channels_where_they_were() -> None:
    net = lively(models.create("resnet8"))
    graph = ChannelGraph(net, images())
    first, second, third = (
        g for g in graph.groups if g.name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")
    )
    assert (first.channels, second.channels, third.channels) == (16, 16, 32)
    smaller = graph.remove({first: torch.tensor([0, 5]), second: torch.tensor([1, 2, 9])})
    shortcut = smaller.layer2[0].shortcut
    assert (shortcut.before, shortcut.in_channels, shortcut.after) == (6, 14, 7)
    x = torch.randn(1, 14, 4, 4)
    assert torch.equal(shortcut(x), pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 6, 7)))
