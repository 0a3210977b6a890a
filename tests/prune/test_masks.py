"""Unstructured pruning: what is masked, and that it stays at 0."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prune_nets import toy_data, toy_net
from torch import Tensor, nn

from qkernels.distill import TrainConfig, train
from qkernels.prune import Masks, magnitude, weights

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3)
amounts = st.floats(0, 0.999)


def random_scores(sizes: list[list[int]], seed: int, ties: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.rand(size, generator=generator) for i, size in enumerate(sizes)}
    return {n: (s * 3).round() if ties else s for n, s in scores.items()}


@given(st.lists(shapes, min_size=1, max_size=3), amounts, st.integers(0, 9), st.booleans())
def test_amount_is_met_to_the_weight_and_nothing_kept_scores_below_what_went(
    sizes: list[list[int]], amount: float, seed: int, ties: bool
) -> None:
    scores = random_scores(sizes, seed, ties)
    for name, mask in Masks.of(scores, amount=amount).kept.items():
        gone, kept = scores[name][~mask], scores[name][mask]
        assert amount - 1 / mask.numel() < len(gone) / mask.numel() <= amount + 1e-5
        assert not len(gone) or gone.max() <= kept.min()


@given(st.floats(0, 0.7), st.integers(0, 9))
def test_a_global_amount_has_one_threshold_for_all_layers(amount: float, seed: int) -> None:
    scores = random_scores([[7], [40], [3, 3]], seed, ties=False)
    scores["0"] += 5  # layers of large weights stay whole as long as others have smaller ones
    scores["2"] += 5
    masks = Masks.of(scores, amount=amount, scope="global")
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.cat([mask.flatten() for mask in masks.kept.values()])
    assert int((~kept).sum()) == int(amount * 56 + 1e-6)
    assert kept.all() or flat[~kept].max() < flat[kept].min()
    assert masks.kept["0"].all() and masks.kept["2"].all()


def test_what_stays_and_what_went_make_the_weight_exactly() -> None:
    net = toy_net()
    masks = Masks.of(magnitude(weights(net)), amount=0.7)
    before = {name: value.clone() for name, value in weights(net).items()}
    masks(net)
    for name, mask in masks.kept.items():
        w = before[name]
        assert torch.equal(w * mask + w * ~mask, w)
        assert torch.equal(weights(net)[name], torch.where(mask, w, 0.0))
    assert masks.sparsity == pytest.approx(0.7, abs=0.01)


def test_pruned_weights_are_0_after_training_with_momentum_and_decay() -> None:
    config = TrainConfig(
        epochs=2, batch_size=16, lr=0.05, momentum=0.9, weight_decay=1e-2, augment=False
    )
    for hook in (True, False):
        net = toy_net()
        masks = Masks.of(magnitude(weights(net)), amount=0.6)
        masks(net)
        start = copy.deepcopy(net)
        train(net, toy_data(), config, after_step=masks if hook else None, progress=False)
        pruned = torch.cat([weights(net)[n][~m] for n, m in masks.kept.items()])
        kept = torch.cat([(weights(net)[n] - weights(start)[n])[m] for n, m in masks.kept.items()])
        assert (kept != 0).float().mean() > 0.9
        assert bool((pruned == 0).all()) == hook  # the optimizer alone would bring them back
        assert not torch.equal(net[0].bias, start[0].bias) and not torch.equal(
            net[1].weight, start[1].weight
        )


def test_biases_batch_norms_and_buffers_are_left_alone() -> None:
    net = toy_net()
    others = {n: v.clone() for n, v in net.state_dict().items() if n not in weights(net)}
    Masks.of(magnitude(weights(net)), amount=0.9)(net)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in others.items())


def test_a_run_stopped_and_resumed_with_saved_masks_is_the_run_never_stopped(tmp_path) -> None:
    config = TrainConfig(epochs=2, batch_size=16, lr=0.05, augment=False)
    start = toy_net()
    masks = Masks.of(magnitude(weights(start)), amount=0.5)
    masks(start)
    whole = copy.deepcopy(start)
    train(whole, toy_data(), config, after_step=masks, progress=False)

    masks.save(tmp_path / "masks.safetensors")
    run, steps = tmp_path / "run", 0

    def killed(model: nn.Module, lr: float) -> None:
        nonlocal steps
        steps += 1
        masks(model)
        if steps == 6:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            copy.deepcopy(start), toy_data(), config, after_step=killed, run_dir=run, progress=False
        )
    again = copy.deepcopy(start)
    loaded = Masks.load(tmp_path / "masks.safetensors")
    assert loaded == masks
    train(again, toy_data(), config, after_step=loaded, run_dir=run, progress=False)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in whole.state_dict().items())


def test_masks_of_zeros_are_those_that_made_them() -> None:
    net = toy_net()
    masks = Masks.of(magnitude(weights(net)), amount=0.3)
    masks(net)
    assert Masks.of_zeros(weights(net)) == masks
    assert "29.9% of 3 tensors pruned" in repr(masks) and "0.weight" in repr(masks)


def test_a_growing_amount_keeps_what_was_pruned() -> None:
    net = toy_net()
    first = Masks.of(magnitude(weights(net)), amount=0.3)
    first(net)
    second = Masks.of(magnitude(weights(net)), amount=0.6)
    assert all(bool((first.kept[n] | ~second.kept[n]).all()) for n in first.kept)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amount": 1.0}, r"amount=1.0 must be in \[0, 1\)"),
        ({"amount": -0.1}, r"amount=-0.1 must be in \[0, 1\)"),
        ({"amount": float("nan")}, "amount=nan"),
        ({}, "either an amount or a threshold"),
        ({"amount": 0.1, "threshold": 1.0}, "either an amount or a threshold"),
        ({"amount": 0.1, "scope": "model"}, "scope='model'"),
        ({"threshold": 1e9}, r"threshold=1000000000.0 would prune all 216 values of 0.weight"),
    ],
)
def test_bad_input_is_one_sentence(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Masks.of(magnitude(weights(toy_net())), **settings)


def test_masks_of_another_model_change_nothing() -> None:
    net, other = toy_net(), toy_net(width=4)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        ValueError, match=r"mask '0.weight' \[8, 3, 3, 3\] meets a parameter of \[4, 3, 3, 3\]"
    ):
        Masks.of(magnitude(weights(net)), amount=0.5)(other)
    assert all(torch.equal(v, before[n]) for n, v in other.state_dict().items())


def test_a_threshold_keeps_what_reaches_it() -> None:
    masks = Masks.of({"w": torch.tensor([0.1, 0.5, 0.5, 0.9])}, threshold=0.5)
    assert masks.kept["w"].tolist() == [False, True, True, True]
