"""Rows of the table of techniques: pruning of single weights and of channels.

Every row but the last starts from the student trained alone, and fine-tunes for `epochs` in all. Choices are kept in
the row's folder with the run, so that a stopped row goes on with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qkernels import prune
from qkernels.distill import TrainConfig, train
from qkernels.measuring.costs import count_macs
from qkernels.reports import hang, report
from techniques.row import Outcome, Row, Setting

WEIGHTS = 0.8  # share of single weights that goes
MACS = 0.4  # share of the multiply-adds that goes with channels
BLOCK_MACS = 0.35  # and with blocks: a ResNet-8 without the one it can spare has lost 39 %
MULTIPLE = 8  # of channels: half a panel of the kernels, the least layers here being one panel wide
IMAGES = 1024  # training images that scores look at
LR = 0.05
GONE, ZEROS = "multiply-adds gone", "zeros in what is left"

Score = Callable[[nn.Module, Setting], prune.Scores]


def masked(scope: Any, steps: int) -> Callable[[Setting], Outcome]:
    """Single weights by magnitude."""

    def run(setting: Setting) -> Outcome:
        def choose(net: nn.Module, amount: float) -> nn.Module:
            scores = prune.magnitude(prune.weights(net))
            return hang(net, prune.Masks.of(scores, amount=amount, scope=scope))

        return _fine_tuned(setting, setting.alone, choose, WEIGHTS, steps)

    return run


def stable(setting: Setting) -> Outcome:
    """Single weights that few of four parts of the data would keep, by their Taylor scores."""

    def choose(net: nn.Module, amount: float) -> nn.Module:
        parts = prune.split(labelled(setting), 4)
        scores = prune.stability([prune.taylor(net, part) for part in parts], amount)
        return hang(net, prune.Masks.of(scores, amount=amount))

    return _fine_tuned(setting, setting.alone, choose, WEIGHTS, steps=1)


def elastic_net(setting: Setting) -> Outcome:
    """No selection at all: proximal steps make the zeros; then what is dead goes."""
    net = copy.deepcopy(setting.alone)
    hook = prune.Proximal(prune.weights(net), l1=2e-2, l2=1e-4)
    config = TrainConfig(epochs=setting.epochs, lr=LR, weight_decay=0.0)
    train(net, setting.data, config, after_step=hook, run_dir=setting.run_dir)
    smaller = prune.remove_dead_channels(net.eval(), _example(setting))
    done = report(smaller)
    dead = f"{done.macs[0] - done.macs[1]:,} multiply-adds were dead"
    return _outcome(setting, setting.alone, smaller, dead)


def channels(score: Score, *, steps: int = 1, guided: bool = False) -> Callable[[Setting], Outcome]:
    """Channels down to a share of the multiply-adds; `guided` by the teacher while fine-tuning."""

    def run(setting: Setting) -> Outcome:
        return _fine_tuned(
            setting, setting.alone, _drop(setting, score), MACS, steps, guided=guided
        )

    return run


def slimmed(setting: Setting) -> Outcome:
    """Half of the epochs push batch norm scales to 0, the other half fine-tune without the smallest."""
    net = copy.deepcopy(setting.alone)
    hook = prune.Proximal(prune.gammas(net), l1=1e-2)
    config = TrainConfig(epochs=max(1, setting.epochs // 2), lr=LR)
    train(net, setting.data, config, after_step=hook, run_dir=setting.run_dir / "slimming")
    choose = _drop(setting, by_gamma, relative=False)
    return _fine_tuned(setting, net.eval(), choose, MACS, steps=1, share=0.5)


def without_blocks(setting: Setting) -> Outcome:
    return _without_blocks(setting, setting.alone, BLOCK_MACS)


def teacher_without_blocks(setting: Setting) -> Outcome:
    """For twice the epochs: it has more to win back than a student."""
    return _without_blocks(setting, setting.teacher, MACS, share=2.0)


def _without_blocks(
    setting: Setting, start: nn.Module, amount: float, share: float = 1.0
) -> Outcome:
    """Whole residual blocks, those without which the loss is least, fine-tuned with the teacher."""
    full = count_macs(start, setting.data.image_shape)

    def choose(net: nn.Module, amount: float) -> nn.Module:
        example = _example(setting)
        losses = prune.block_losses(net, prune.find_blocks(net, example), labelled(setting))
        return prune.drop_blocks(net, example, losses, macs=int((1 - amount) * full))

    return _fine_tuned(setting, start, choose, amount, steps=1, share=share, guided=True)


def by_magnitude(net: nn.Module, setting: Setting) -> prune.Scores:
    return prune.magnitude(prune.weights(net))


def by_gamma(net: nn.Module, setting: Setting) -> prune.Scores:
    return prune.magnitude(prune.gammas(net), p=1)


def by_taylor(net: nn.Module, setting: Setting) -> prune.Scores:
    return prune.taylor(net, labelled(setting))


def by_entropy(net: nn.Module, setting: Setting) -> prune.Scores:
    return prune.entropy(net, labelled(setting))


def by_dropout(net: nn.Module, setting: Setting) -> prune.Scores:
    return prune.dropout(net, labelled(setting), parts=20)


def labelled(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """Batches of the same training images at every call."""
    batches = setting.data.batches("train", 128, shuffle=True, seed=0).head(IMAGES)
    return [(images, labels) for images, labels in batches if labels is not None]


def _drop(setting: Setting, score: Score, *, relative: bool = True) -> prune.Prune:
    full = count_macs(setting.alone, setting.data.image_shape)

    def choose(net: nn.Module, amount: float) -> nn.Module:
        net.eval()
        return prune.prune_channels(
            net,
            _example(setting),
            score(net, setting),
            macs=int((1 - amount) * full),
            relative=relative,
            multiple=MULTIPLE,
        )

    return choose


def _fine_tuned(
    setting: Setting,
    start: nn.Module,
    choose: prune.Prune,
    amount: float,
    steps: int,
    *,
    share: float = 1.0,
    guided: bool = False,
) -> Outcome:
    """Pruned in some steps and trained for a `share` of the epochs in all."""
    config = TrainConfig(epochs=max(1, int(share * setting.epochs) // steps), lr=LR)
    net = prune.prune_gradually(
        start,
        setting.data,
        config,
        choose,
        final=amount,
        steps=steps,
        description=f"scores of {IMAGES} images, multiples of {MULTIPLE}",
        run_dir=setting.run_dir,
        teacher=setting.teacher if guided else None,
    )
    return _outcome(setting, start, net.eval())


def _outcome(setting: Setting, start: nn.Module, net: nn.Module, note: str = "") -> Outcome:
    before, after = (count_macs(model, setting.data.image_shape) for model in (start, net))
    zeros = prune.Masks.of_zeros(prune.weights(net)).sparsity
    figures = {GONE: 1 - after / before, ZEROS: zeros}
    return Outcome(net, setting.int8(net), note, figures)


def _example(setting: Setting) -> Tensor:
    return torch.zeros(1, *setting.data.image_shape)


def _row(name: str, ids: str, module: str, test: str, run: Callable[[Setting], Outcome]) -> Row:
    paths = (f"qkernels/prune/{module}.py", f"tests/prune/{test}.py", "examples/pruning.py")
    return Row(name, tuple(ids.split()), *paths, run)


DISTILLED = channels(by_magnitude, steps=3, guided=True)
ROWS = (
    _row("weights: magnitude, by layer", "S1-1 S1-2 S1-3", "masks", "test_masks", masked("layer", 1)),
    _row("weights: magnitude, global, cubic", "S2-1 S2-5", "gradual", "test_gradual", masked("global", 3)),
    _row("weights: Taylor, stable over splits", "S2-3 S4-3", "scores", "test_scores", stable),
    _row("weights: elastic net, proximal", "S3-11 S4-1", "proximal", "test_proximal", elastic_net),
    _row("channels: magnitude", "S2-4", "channels", "test_channels", channels(by_magnitude)),
    _row("channels: Taylor", "S2-3 S2-4", "channels", "test_channels", channels(by_taylor)),
    _row("channels: entropy", "S2-2", "scores", "test_scores", channels(by_entropy)),
    _row("channels: dropout", "S3-12", "ablation", "test_scores", channels(by_dropout)),
    _row("channels: network slimming", "S3-12", "proximal", "test_channels", slimmed),
    _row("channels: cubic, distilled", "S2-15", "gradual", "test_gradual", DISTILLED),
    _row("blocks, distilled", "S2-4 S2-15", "blocks", "test_blocks", without_blocks),
    _row("blocks of the teacher, distilled", "S2-4 S2-15", "blocks", "test_blocks", teacher_without_blocks),
)  # fmt: skip
