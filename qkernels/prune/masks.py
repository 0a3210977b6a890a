"""Which single weights are pruned, and a hook that keeps them at 0 while the others are trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qkernels.prune.scores import Scores, largest
from qkernels.utils.extras import require
from qkernels.utils.files import replacing


class Masks:
    """Bool tensors by parameter name, True where a weight stays. Called, it prunes the model.

    As `train(..., after_step=masks)` it runs after every optimizer step, so that momentum and weight decay cannot move
    a pruned weight away from 0. Zeros in a dense tensor save neither time nor memory: only `prune_channels` does.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self.kept = {name: mask.bool() for name, mask in kept.items()}

    @classmethod
    def of(
        cls,
        scores: Scores,
        *,
        amount: float | None = None,
        threshold: float | None = None,
        scope: Literal["layer", "global"] = "layer",
    ) -> Masks:
        """Prune what scores least: the share `amount` of each tensor (or of all of them), or all below `threshold`.

        Of equal scores the first go first, so that the amount is met to the weight (rounded down). Weights pruned
        before have a score of 0 by `magnitude` and `taylor`, and stay pruned as the amount grows.

        Raises ValueError unless one of amount, in [0, 1), and threshold is given, or if a layer would be left empty.
        """
        if (amount is None) == (threshold is None):
            raise ValueError("give either an amount or a threshold")
        if amount is not None and not 0 <= amount < 1:
            raise ValueError(f"amount={amount} must be in [0, 1)")
        if scope not in ("layer", "global"):
            raise ValueError(f"scope={scope!r} must be 'layer' or 'global'")
        if threshold is not None:
            kept = {name: score >= threshold for name, score in scores.items()}
        elif scope == "layer":
            kept = {name: largest(score, amount or 0.0) for name, score in scores.items()}
        else:
            flat = torch.cat([score.flatten() for score in scores.values()])
            parts = largest(flat, amount or 0.0).split([s.numel() for s in scores.values()])
            kept = {n: p.view_as(s) for (n, s), p in zip(scores.items(), parts, strict=True)}
        for name, mask in kept.items():
            if not mask.any():
                asked = f"threshold={threshold}" if amount is None else f"amount={amount}"
                raise ValueError(f"{asked} would prune all {mask.numel()} values of {name}")
        return cls(kept)

    @classmethod
    def of_zeros(cls, parameters: Mapping[str, Tensor]) -> Masks:
        """Prune what is 0 already, such as after proximal steps."""
        return cls({name: value.detach() != 0 for name, value in parameters.items()})

    @torch.no_grad()
    def __call__(self, model: nn.Module, lr: float = 0.0) -> None:
        """Set the pruned weights of `model` to 0, in place. Raises ValueError, before, if a mask does not fit."""
        parameters = dict(model.named_parameters())
        for name, mask in self.kept.items():
            found = parameters.get(name)
            if found is None or found.shape != mask.shape:
                shape = "nothing" if found is None else f"a parameter of {list(found.shape)}"
                raise ValueError(f"the mask {name!r} {list(mask.shape)} meets {shape} in the model")
        for name, mask in self.kept.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)

    @property
    def sparsity(self) -> float:
        """Share of the masked weights that is pruned."""
        total = sum(mask.numel() for mask in self.kept.values())
        return 1 - sum(int(mask.sum()) for mask in self.kept.values()) / max(1, total)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file."""
        with replacing(path) as aside:
            require("safetensors.torch").save_file(self.kept, str(aside))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read what `save` wrote; FileNotFoundError if there is nothing."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no masks at {path}")
        return cls(require("safetensors.torch").load_file(str(path)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Masks) or self.kept.keys() != other.kept.keys():
            return False
        return all(torch.equal(mask, other.kept[name]) for name, mask in self.kept.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        rows = [f"Masks: {self.sparsity:.1%} of {len(self.kept)} tensors pruned"]
        for name, mask in self.kept.items():
            share = 1 - float(mask.float().mean())
            bar = "#" * round(20 * share)
            rows.append(f"  {name:32} {bar:20} {share:6.1%} of {mask.numel():,}")
        return "\n".join(rows)
