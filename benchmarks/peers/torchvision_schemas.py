"""Schemas that torchvision asks for and a torch it was not built for lacks; transformers and timm import it."""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as the process


def declare() -> None:
    """Declare those that are not known, so that torchvision can be imported."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
