"""Gradual schedules: the cubic curve, and runs that may be killed."""

import copy
import functools

import pytest
import torch
from prune_nets import toy_data, toy_net
from torch import nn

import qkernels as qk
from qkernels import prune
from qkernels.distill import TrainConfig
from qkernels.distill.loop import Loop
from qkernels.measuring.costs import count_macs
from qkernels.reports import hang, reports_of

CONFIG = TrainConfig(epochs=2, batch_size=32, lr=0.05, augment=False)
IMAGES = (3, 8, 8)


def test_cubic_is_that_of_zhu_and_gupta() -> None:
    amounts = [prune.cubic(step, 4, 0.8) for step in range(5)]
    assert amounts == pytest.approx([0, 0.4625, 0.7, 0.7875, 0.8])
    assert prune.cubic(0, 4, 0.8, initial=0.2) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"step=5 must be in 0\.\.4"):
        prune.cubic(5, 4, 0.8)


def channels(net: nn.Module, amount: float):
    macs = int((1 - amount) * count_macs(toy_net(16), IMAGES))
    scores = prune.magnitude(prune.weights(net))
    return prune.prune_channels(net, torch.zeros(1, *IMAGES), scores, macs=macs, multiple=1)


def masks(net: nn.Module, amount: float):
    return hang(net, prune.Masks.of(prune.magnitude(prune.weights(net)), amount=amount))


@pytest.mark.parametrize("how", [channels, masks])
def test_a_gradual_run_killed_anywhere_goes_on_to_the_same_bits(how, tmp_path, monkeypatch) -> None:
    first = toy_net(16)
    start = copy.deepcopy(first.state_dict())

    def run(folder: str) -> nn.Module:
        net = prune.prune_gradually(
            first,
            toy_data(),
            CONFIG,
            how,
            final=0.7,
            steps=3,
            run_dir=tmp_path / folder,
            progress=False,
        )
        results = qk.report(net).steps
        assert len(results) == 3
        return net

    whole = run("whole")
    calls, step = 0, Loop._step

    def dying(self, *args):
        nonlocal calls
        calls += 1
        if calls % 5 == 0:  # 4 steps a pruning step: inside the second, the third, ...
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Loop, "_step", dying)
    for _ in range(9):
        try:
            again = run("killed")
            break
        except KeyboardInterrupt:
            pass
    assert calls > 12
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in whole.state_dict().items())
    assert all(torch.equal(v, first.state_dict()[n]) for n, v in start.items())


def test_channels_shrink_step_by_step_down_to_the_target(tmp_path) -> None:
    seen = []

    def watched(net: nn.Module, amount: float):
        smaller = channels(net, amount)
        seen.append(qk.report(smaller).macs[1])
        return smaller

    first = toy_net(16)
    net = prune.prune_gradually(
        first, toy_data(), CONFIG, watched, final=0.6, steps=3, run_dir=tmp_path, progress=False
    )
    full = count_macs(first, IMAGES)
    assert len(seen) == 3 and seen[0] > seen[1] >= seen[2]
    assert count_macs(net, IMAGES) == seen[-1] <= 0.4 * full


def test_masks_hold_after_every_step(tmp_path) -> None:
    net = prune.prune_gradually(
        toy_net(), toy_data(), CONFIG, masks, final=0.8, steps=2, run_dir=tmp_path, progress=False
    )
    for value in prune.weights(net).values():
        assert float((value == 0).float().mean()) == pytest.approx(0.8, abs=1 / value.numel())


def test_the_folder_of_another_amount_is_refused(tmp_path) -> None:
    settings = {"steps": 1, "run_dir": tmp_path, "progress": False}
    first = toy_net()
    prune.prune_gradually(first, toy_data(), CONFIG, masks, final=0.5, **settings)
    with pytest.raises(
        ValueError, match=r"was pruned with amount=0\.5, not 0\.6: take another run_dir"
    ):
        prune.prune_gradually(first, toy_data(), CONFIG, masks, final=0.6, **settings)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        prune.prune_gradually(
            toy_net(), toy_data(), CONFIG, masks, final=0.6, steps=0, run_dir=tmp_path
        )


def test_a_choice_made_in_another_way_or_of_other_weights_is_refused(tmp_path) -> None:
    settings = {"final": 0.5, "steps": 1, "run_dir": tmp_path, "progress": False}
    run = functools.partial(prune.prune_gradually, data=toy_data(), config=CONFIG, **settings)
    first = toy_net()
    net = run(first, prune=masks, description="by layer")
    with pytest.raises(ValueError, match="pruned with description='by layer', not 'global': take"):
        run(first, prune=masks, description="global")
    with pytest.raises(ValueError, match=r"was pruned with weights='.*', not '.*': take another"):
        run(net, prune=masks, description="by layer")
    (tmp_path / "step-1" / "pruned.pt").unlink()
    torch.save({"amount": 0.5}, tmp_path / "step-1" / "pruned.pt")  # of an earlier version
    with pytest.raises(ValueError, match="was pruned with description=None, not 'by layer'"):
        run(first, prune=masks, description="by layer")


def test_a_final_amount_outside_0_to_1_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"final=1.0 must be in \[0, 1\)"):
        prune.prune_gradually(
            toy_net(), toy_data(), CONFIG, masks, final=1.0, steps=2, run_dir=tmp_path
        )


def test_masks_of_an_earlier_step_do_not_outlive_the_step(tmp_path) -> None:
    """Where a later step hangs no masks, none are kept while it trains."""
    seen = []

    def once(net: nn.Module, amount: float) -> nn.Module:
        seen.append(reports_of(net))
        return masks(net, amount) if len(seen) == 1 else net

    net = prune.prune_gradually(
        toy_net(), toy_data(), CONFIG, once, final=0.6, steps=2, run_dir=tmp_path, progress=False
    )
    assert seen == [[], []] and [type(r) for r in reports_of(net)] == [prune.GradualReport]
    assert all(float((v == 0).float().mean()) < 0.01 for v in prune.weights(net).values())


def test_a_prune_that_returns_a_pair_is_told_to_return_the_model(tmp_path) -> None:
    with pytest.raises(TypeError, match="returned a tuple: let it return the model alone"):
        prune.prune_gradually(
            toy_net(), toy_data(), CONFIG, lambda net, amount: (net, None),
            final=0.5, steps=1, run_dir=tmp_path,
        )  # fmt: skip
