"""What a classifier answers: one tensor of logits, whatever a model puts around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class AnswerError(TypeError, ValueError):
    """A model whose answer does not say which of it are the logits."""


def logits_of(model: Callable[..., Any], images: Tensor) -> Tensor:
    """The logits of `images`: the tensor that the model returns, or the one that its answer calls logits.

    An answer with an attribute or a key "logits" is that of transformers and of torchvision's training mode. A model
    whose weights all have another floating dtype than the images is asked in its own, and answers in that.
    Raises AnswerError for any other answer, with the line that picks the logits out of it.
    """
    own = None
    if images.is_floating_point() and not torch.is_autocast_enabled(images.device.type):
        own = _other_dtype(model, images.dtype)
    answer = model(images if own is None else images.to(own))
    if isinstance(answer, Tensor):
        return answer
    found = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise AnswerError(_refusal(model, answer))


def _other_dtype(model: Any, dtype: torch.dtype) -> torch.dtype | None:
    """The floating dtype that all weights of a model share, where it is not ``dtype``; else None."""
    found = set[torch.dtype]()
    for module in model.modules() if isinstance(model, nn.Module) else ():
        for p in (
            module._parameters.values()
        ):  # not parameters(), for which int8 layers compute float weights
            if p is not None and p.is_floating_point():
                if p.dtype == dtype:
                    return None  # as nearly always: the first weight decides
                found.add(p.dtype)
    return found.pop() if len(found) == 1 else None


def _refusal(model: Any, answer: Any) -> str:
    kind = type(model).__name__ if isinstance(model, nn.Module) else "the model"
    if isinstance(answer, Mapping):
        what, pick = (
            f"a dict of {', '.join(map(repr, answer))}",
            f"output[{next(iter(answer), 'name')!r}]",
        )
    elif isinstance(answer, tuple | list):
        what, pick = f"a {type(answer).__name__} of {len(answer)}", "output[0]"
    else:
        what, pick = f"a {type(answer).__name__}", "output.name"
    return (
        f"{kind} returns {what}, and which of it are the logits is not said: let it return them, such as by "
        f"model.register_forward_hook(lambda module, inputs, output: {pick})"
    )
