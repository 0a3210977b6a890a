"""Whether a model cuts its values into windows, whose number follows from the size of the input.

With free sizes torch.export proves equations of quotients for every window then, for minutes, to find in the end that
the sizes are not free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qkernels.modules.calling import Call
from qkernels.modules.eval_mode import answering

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def cuts_windows(model: nn.Module, call: Call) -> bool:
    """Whether a view in the call splits two axes at once, as height and width into windows; heads split one."""
    with answering(model), _Views() as views:
        call.run(model)
    return views.split_two


class _Views(TorchDispatchMode):
    split_two = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if func in _VIEWS and y.numel():
            self.split_two |= splits(args[0].shape, y.shape) > 1
        return y


def splits(source: Sequence[int], view: Sequence[int]) -> int:
    """How many axes of ``source`` become several in ``view``, which has the same elements, and some."""
    before, after = ([n for n in sizes if n != 1] for sizes in (source, view))
    count = i = j = 0
    while i < len(before) and j < len(after):
        first, left, right, k = i, before[i], after[j], 1
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j, k = right * after[j], j + 1, k + 1
        count += i == first + 1 and k > 1
    return count
