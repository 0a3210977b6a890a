"""Importance scores against values worked out by hand."""

import copy

import pytest
import torch
from prune_nets import Branches
from torch import Tensor, nn

from qkernels import prune


def two_layers() -> nn.Sequential:
    """y = v . (W x), W = [[1, 2], [3, -1]], v = [2, -1]"""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    net[1].weight.data = torch.tensor([[2.0, -1.0]])
    return net


def half_square(y: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (y - target).square().mean()


def test_gradient_and_taylor_are_those_worked_out_by_hand() -> None:
    # x = (1, 2), target 0: W x = (5, 1), y = 9, loss 81 / 2, dL/dy = 9, dL/dv = 9 (5, 1), dL/dW = 9 v x^T
    net, batches = two_layers(), [(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))]
    g = {"0.weight": [[18.0, 36.0], [9.0, 18.0]], "1.weight": [[45.0, 9.0]]}
    w_g = {"0.weight": [[18.0, 72.0], [27.0, 18.0]], "1.weight": [[90.0, 9.0]]}
    gradient = prune.gradient(net, batches, half_square)
    taylor = prune.taylor(net, batches, half_square)
    assert {name: value.tolist() for name, value in gradient.items()} == g
    assert {name: value.tolist() for name, value in taylor.items()} == w_g


def test_gradients_do_not_depend_on_the_cut_into_batches() -> None:
    net, x, t = two_layers(), torch.randn(7, 2), torch.randn(7, 1)
    whole = prune.taylor(net, [(x, t)], half_square)
    cut = prune.taylor(net, list(zip(x.split(3), t.split(3), strict=True)), half_square)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name])


def test_scoring_leaves_the_model_as_it_was() -> None:
    net = Branches().train()
    net.head.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    prune.taylor(net, batches)
    prune.entropy(net, batches)
    prune.dropout(net, batches)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and net.norm.training and not net.head.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_entropy_of_a_constant_channel_is_0_and_of_a_fair_coin_1_bit() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1))
    x = torch.zeros(64, 3, 4, 4)
    x[:, 0] = 0.5
    x[::2, 1] = 1.0
    x[:, 2] = torch.linspace(0, 1, 64).view(-1, 1, 1)
    scores = prune.entropy(net, x, bins=16)["0"]
    torch.testing.assert_close(scores, torch.tensor([0.0, 1.0, 4.0]), atol=1e-6, rtol=0)


def test_entropy_looks_at_the_mean_of_an_image() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1))
    x = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2).repeat(8, 1, 1, 1)  # every image says the same
    assert prune.entropy(net, x)["0"].tolist() == [0.0]


def test_entropy_of_a_linear_on_tokens_is_that_of_its_channels() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    x = torch.zeros(64, 5, 3)  # [N, T, C]
    x[::2, :, 1] = 1.0
    x[:, 0, 2], x[:, 1, 2] = 1.0, -1.0  # tokens differ, images do not
    assert prune.entropy(net, x)["0"].tolist() == pytest.approx([0.0, 1.0, 0.0])


def test_dropout_finds_the_channel_that_the_loss_needs() -> None:
    net = nn.Linear(3, 1, bias=False)
    net.weight.data = torch.tensor([[0.0, 1.0, 3.0]])
    x = torch.randn(256, 3)
    batches = [(x, net(x).detach())]
    scores = prune.dropout(nn.Sequential(net), batches, half_square, parts=3)["0"]
    # alone dropped, channel c costs w^2 E[x^2] / 2; against the mean of the two other passes
    cost = 0.5 * (net.weight.detach().flatten() * x).square().mean(0)
    expected = (cost - (cost.sum() - cost) / 2).clamp(min=0)
    torch.testing.assert_close(scores, expected)
    assert scores.tolist()[:2] == [0, 0] and scores[2] > 3


def test_dropout_drops_the_channels_of_a_linear_on_tokens() -> None:
    net = nn.Linear(3, 1, bias=False)
    net.weight.data = torch.tensor([[0.0, 1.0, 3.0]])
    x = torch.randn(64, 3, 3)  # as many tokens as channels
    batches = [(x, net(x).detach())]
    tokens = prune.dropout(nn.Sequential(net), batches, half_square, parts=3)["0"]
    rows = [(x.flatten(0, 1), net(x).detach().flatten(0, 1))]
    torch.testing.assert_close(
        tokens, prune.dropout(nn.Sequential(net), rows, half_square, parts=3)["0"]
    )


def test_average_and_stability_over_splits() -> None:
    first = {"w": torch.tensor([1.0, 5.0, 2.0, 4.0])}
    other = {"w": torch.tensor([3.0, 6.0, 9.0, 2.0])}
    assert prune.average([first, other])["w"].tolist() == [2.0, 5.5, 5.5, 3.0]
    votes = prune.stability([first, other], amount=0.5)["w"]
    # kept by first: 1 and 3, by other: 1 and 2; between 2 and 3 the mean decides
    assert votes.argsort().tolist() == [0, 3, 2, 1]
    assert votes[1] >= 1 and 0.5 <= votes[3] < votes[2] < 1 and votes[0] < 0.5


def test_split_deals_batches_and_refuses_more_parts_than_there_are() -> None:
    assert prune.split(range(5), 2) == [[0, 2, 4], [1, 3]]
    with pytest.raises(ValueError, match="2 batches cannot be split into parts=3"):
        prune.split(range(2), 3)


def test_biases_and_batch_norms_have_no_score_unless_asked_for() -> None:
    net = Branches()
    assert set(prune.weights(net)) == {
        f"{n}.weight" for n in ("left", "right", "deep", "mix", "head")
    }
    assert "left.bias" in prune.weights(net, biases=True)
    assert set(prune.gammas(net)) == {"norm.weight"}
    with pytest.raises(ValueError, match="no layer 'lefd' to prune; the nearest: left"):
        prune.weights(net, ["lefd"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: prune.magnitude(prune.weights(net), p=3), "p=3 must be 1 or 2"),
        (lambda net: prune.taylor(net, []), "no batches with labels"),
        (lambda net: prune.dropout(net, [(torch.zeros(1), None)]), "no batches with labels"),
        (lambda net: prune.dropout(net, [], parts=1), "parts=1 must be at least 2"),
        (lambda net: prune.entropy(net, torch.randn(2, 3, 8, 8), bins=1), "bins=1"),
        (lambda net: prune.average([]), "at least one score"),
        (lambda net: prune.stability([prune.magnitude(prune.weights(net))], 1.0), "amount=1.0"),
    ],
)
def test_bad_input_is_one_sentence(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Branches())
