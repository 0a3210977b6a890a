"""What torchvision's compiled operators would do, for a wheel that cannot load them beside a CPU build of torch."""

import importlib

import pytest
import torch
from torch import Tensor
from zoo_models import ZOO, ZooModel


def torchvision_without_its_operators(patch: pytest.MonkeyPatch) -> None:
    """Detection models then run, in Python and without a compiler."""
    boxes = importlib.import_module("torchvision.ops.boxes")
    align = importlib.import_module("torchvision.ops.roi_align")
    patch.setattr(boxes, "nms", nms)
    patch.setattr(align, "_roi_align", getattr(align._roi_align, "__wrapped__", align._roi_align))


def usable(name: str, patch: pytest.MonkeyPatch) -> ZooModel:
    """The entry of the zoo, which can be built now; the test is skipped where its package is missing."""
    entry = ZOO[name]
    if entry.package is not None:
        pytest.importorskip(entry.package)
    if entry.package == "torchvision":
        torchvision_without_its_operators(patch)
    return entry


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The indices of the boxes that overlap no better one by more than the threshold, best first."""
    from torchvision.ops import box_iou

    overlaps = box_iou(boxes, boxes) > iou_threshold
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not overlaps[i, kept].any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)
