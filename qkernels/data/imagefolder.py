"""Folders of image files, one sub-folder per class, decoded when a batch asks for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qkernels.data.augment import Augment
from qkernels.data.extras import require
from qkernels.data.image_data import ImageData
from qkernels.data.paths import data_root
from qkernels.data.split import Split, hold_out
from qkernels.image_input import fit

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
MEAN = (0.485, 0.456, 0.406)  # ImageNet, which every published model of that size expects
STD = (0.229, 0.224, 0.225)
BORDER = (1 - 224 / 256) / 2  # the evaluation protocol of He et al. 2016


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Files as uint8 RGB [3, size, size]: the central square, 224/256 of the shorter side. An ImageStore."""

    paths: tuple[Path, ...]
    size: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Tensor:
        batch = torch.empty((len(index), 3, self.size, self.size), dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes
            for row, image in enumerate(pool.map(self._decode, index.tolist())):
                batch[row] = image
        return batch

    def select(self, index: Tensor) -> ImageFiles:
        return ImageFiles(tuple(self.paths[i] for i in index.tolist()), self.size)

    def _decode(self, position: int) -> Tensor:
        path = self.paths[position]
        try:
            with require("PIL.Image").open(path) as file:
                picture = file.convert("RGB")
        except OSError as error:
            raise ValueError(f"{path} is not a readable image: {error}") from error
        picture = fit(picture, (self.size, self.size), BORDER)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def load_imagefolder(
    root: str | Path | None = None,
    *,
    image_size: int = 224,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """`root/train/<class>/*` with `root/val/...` and `root/test/...`, the layout of ImageNet.

    A missing `val` is cut from train; a missing `test` is `val` (ImageNet's test labels are not
    public). A split folder with images and no class folders is unlabelled.
    Raises FileNotFoundError without images in `train`, ValueError for an unknown class folder.
    """
    base = data_root(root)
    train_folder = base / "train"
    classes = _folders(train_folder)
    if not classes and (base / "val").is_dir():
        classes = _folders(base / "val")
    train = _read_split(train_folder, classes, image_size)
    if len(train) == 0:
        raise FileNotFoundError(f"no images in {train_folder}/<class>/")
    if (base / "val").is_dir():
        val = _read_split(base / "val", classes, image_size)
    else:
        train, val = hold_out(train, val_fraction, seed)
    test = _read_split(base / "test", classes, image_size) if (base / "test").is_dir() else val
    augment = Augment(padding=image_size // 8, flip=True)
    return ImageData("imagefolder", classes, train, val, test, MEAN, STD, augment, BORDER)


def _read_split(folder: Path, classes: tuple[str, ...], size: int) -> Split:
    loose = _images(folder)
    if loose:
        return Split(ImageFiles(loose, size))
    unknown = [name for name in _folders(folder) if name not in classes]
    if unknown:
        raise ValueError(f"{folder} has the class {unknown[0]!r}, which train has not")
    paths = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    labels = torch.tensor([label for _, label in paths], dtype=torch.int64)
    return Split(ImageFiles(tuple(path for path, _ in paths), size), labels)


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.glob("*") if p.is_dir()))


def _images(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES))
