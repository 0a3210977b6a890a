import copy

import pytest
import torch
from nets import ConvNet, Untraceable, conv_net, images, lively
from torch import Tensor, fx, nn
from torch.nn.utils import prune

import qkernels as qk
from qkernels.quantization import fold_batch_norm_
from qkernels.quantization.fold import FoldedBatchNorm, FoldedBatchNorm1d


def assert_same_output(model: nn.Module, folded: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_traceable_model_folds_every_pair_and_computes_the_same() -> None:
    model = conv_net()
    folded = copy.deepcopy(model)
    folds = qk.report(fold_batch_norm_(folded))
    assert folds.pairs == [("conv1", "bn1"), ("conv2", "bn2"), ("hidden", "bn3")]
    assert folds.notes == []
    assert isinstance(folded.bn1, FoldedBatchNorm)
    assert isinstance(folded.bn3, FoldedBatchNorm1d)
    assert not any("running" in name for name in folded.state_dict())
    assert_same_output(model, folded, images())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folded_convolution_is_exact_to_float32(affine: bool, bias: bool, groups: int) -> None:
    conv = nn.Conv2d(4, 8, 3, groups=groups, bias=bias)
    model = lively(nn.Sequential(conv, nn.BatchNorm2d(8, affine=affine, eps=1e-3)))
    exact = copy.deepcopy(model).double()
    fold_batch_norm_(model)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(x).double(), exact(x.double()), rtol=1e-5, atol=2e-6)


def test_only_the_named_layers_change() -> None:
    model = conv_net()
    assert qk.report(fold_batch_norm_(model, only={"conv2"})).pairs == [("conv2", "bn2")]
    assert isinstance(model.bn1, nn.BatchNorm2d)


def test_parameters_are_replaced_not_written_so_a_tied_twin_is_safe() -> None:
    model = conv_net()
    weight = model.conv1.weight
    before = weight.detach().clone()
    fold_batch_norm_(model)
    assert torch.equal(weight, before)


def test_an_untraceable_model_is_searched_part_by_part() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), ConvTail())
    model = lively(Untraceable(body))
    folded = copy.deepcopy(model)
    folds = qk.report(fold_batch_norm_(folded))
    assert folds.pairs == [("body.0", "body.1"), ("body.3.conv", "body.3.bn")]
    assert "Untraceable cannot be captured" in folds.notes[0]
    assert_same_output(model, folded, images())


def test_an_untraceable_sequential_is_read_in_order() -> None:
    relu = nn.ReLU()
    body = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu),
        *(nn.Conv2d(4, 4, 3), relu, nn.BatchNorm2d(4)),  # the shared ReLU stands between
        Untraceable(nn.Identity()),
    )
    model = lively(Untraceable(body))
    folded = copy.deepcopy(model)
    folds = qk.report(fold_batch_norm_(folded))
    assert folds.pairs == [("body.0", "body.1")]
    assert any("cannot be captured" in note for note in folds.notes)
    assert_same_output(model, folded, images())


def test_an_untraceable_model_without_order_folds_nothing_and_says_why() -> None:
    class Branching(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    folds = qk.report(fold_batch_norm_(lively(Branching())))
    assert folds.pairs == []
    assert "cannot be captured" in folds.notes[0]


class ConvTail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class TwoReaders(ConvTail):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class CalledTwice(ConvTail):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.conv(x)


class NormCalledTwice(ConvTail):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.bn(self.conv(x)))


class ReadsTheWeight(ConvTail):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.conv.weight.mean()


class NormFirst(ConvTail):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.bn(x))


class ReluBetween(ConvTail):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x).relu())


@pytest.mark.parametrize(
    "kind", [TwoReaders, CalledTwice, NormCalledTwice, ReadsTheWeight, NormFirst, ReluBetween]
)
def test_a_norm_that_is_not_the_only_reader_stays(kind: type[nn.Module]) -> None:
    model = lively(kind())
    folded = copy.deepcopy(model)
    assert qk.report(fold_batch_norm_(folded)).pairs == []
    assert_same_output(model, folded, torch.randn(2, 4, 8, 8))


def test_a_shared_module_is_not_folded_and_is_named() -> None:
    tail = ConvTail()
    model = lively(nn.Sequential(tail, tail))
    folded = copy.deepcopy(model)
    assert qk.report(fold_batch_norm_(folded)).pairs == []
    assert_same_output(model, folded, torch.randn(2, 4, 8, 8))
    model = lively(Untraceable(nn.Sequential(tail, Untraceable(tail))))
    folds = qk.report(fold_batch_norm_(model))
    assert folds.pairs == []
    assert any("cannot be captured" in note for note in folds.notes)


def test_a_norm_without_statistics_stays_and_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    folds = qk.report(fold_batch_norm_(model))
    assert folds.pairs == []
    assert "no running statistics" in folds.notes[0]


def test_a_weight_recomputed_by_a_hook_is_not_folded() -> None:
    model = lively(ConvTail())
    prune.l1_unstructured(model.conv, "weight", 0.5)
    assert qk.report(fold_batch_norm_(model)).pairs == []


def test_a_layer_with_a_hook_is_not_folded() -> None:
    model = lively(ConvTail())
    model.conv.register_forward_hook(lambda module, args, output: output.relu())
    folded = copy.deepcopy(model)
    assert qk.report(fold_batch_norm_(folded)).pairs == []
    assert_same_output(model, folded, torch.randn(2, 4, 8, 8))


def test_a_linear_norm_on_sequences_fails_loudly_instead_of_mixing_axes() -> None:
    model = lively(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    fold_batch_norm_(model)
    model(torch.randn(3, 4))
    with pytest.raises(AssertionError, match="fold_batch_norm=False"):
        model(torch.randn(3, 6, 4))  # the norm's channels were axis 1


def test_a_folded_model_can_be_traced() -> None:
    model = conv_net()
    fold_batch_norm_(model)
    assert_same_output(model, fx.symbolic_trace(model), images())


class NormedRows(nn.Module):
    """Linear, then a batch norm over all rows, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y)


class NormedGroups(nn.Module):
    """The view keeps the last axis, and moves the channels that lie before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y.view(1, 8, -1, y.shape[3]))


class NormedAndViewed(NormedRows):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y) + y


def test_a_batch_norm_over_the_rows_of_a_linear_layer_is_folded() -> None:
    model, x = lively(NormedRows()), torch.randn(4, 5, 6)
    folded = copy.deepcopy(model)
    assert qk.report(fold_batch_norm_(folded, x)).pairs == [("linear", "norm")]
    assert_same_output(model, folded, x)


@pytest.mark.parametrize(
    ("build", "x"),
    [(NormedGroups, torch.randn(2, 3, 8, 8)), (NormedAndViewed, torch.randn(4, 5, 6))],
)
def test_views_that_move_channels_or_have_other_readers_keep_their_batch_norm(
    build: type[nn.Module], x: Tensor
) -> None:
    model = lively(build())
    folded = copy.deepcopy(model)
    folds = qk.report(fold_batch_norm_(folded, x))
    assert folds.pairs == [] and "norm is not folded" in folds.notes[0]
    assert_same_output(model, folded, x)


def test_batch_norms_that_stand_before_their_layer_are_named_in_one_note() -> None:
    steps = [(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)) for _ in range(4)]
    folds = qk.report(fold_batch_norm_(lively(nn.Sequential(*(m for s in steps for m in s)))))
    assert folds.pairs == [("2", "3"), ("5", "6"), ("8", "9")]
    assert folds.notes == [
        "0 is not folded: no layer stands before that hands its output to the norm alone"
    ]


def test_no_graph_is_captured_where_no_layer_that_may_change_is_as_wide_as_a_batch_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qkernels.quantization.fold.captures", lambda *_: pytest.fail("captured"))
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 5)))  # fmt: skip
    folds = qk.report(fold_batch_norm_(model, images(2, 8), only={"3"}))
    assert folds.pairs == [] and "none is as wide" in folds.notes[0]
    with pytest.raises(pytest.fail.Exception):
        fold_batch_norm_(model, images(2, 8), only={"0", "3"})
