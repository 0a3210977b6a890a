"""The 8x8 handwritten digits that come with scikit-learn: real data without any download."""

from __future__ import annotations

from pathlib import Path

import torch

from qkernels.data.augment import Augment
from qkernels.data.image_data import ImageData
from qkernels.data.split import Split, stratified_parts
from qkernels.utils.extras import require


def load_digits(root: str | Path | None = None, *, seed: int = 0) -> ImageData:
    """1797 grey images [1, 8, 8] of ten digits, split 60/20/20 by class share and seed.

    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998), its test part.
    `root` is not used: the images lie in scikit-learn.
    """
    bunch = require("sklearn.datasets").load_digits()
    levels = torch.from_numpy(bunch.images)  # 0..16
    everything = Split(
        (levels * (255 / 16)).round().to(torch.uint8)[:, None],
        torch.from_numpy(bunch.target).long(),
    )
    parts = stratified_parts(everything.labels, (0.6, 0.2, 0.2), seed)  # type: ignore[arg-type]
    train, val, test = (everything.take(part) for part in parts)
    pixels = train.images[torch.arange(len(train))].float() / 255
    return ImageData(
        name="digits",
        class_names=tuple("0123456789"),
        train=train,
        val=val,
        test=test,
        mean=(float(pixels.mean()),),
        std=(float(pixels.std()),),
        augment=Augment(padding=1, flip=False),
    )
