"""Folders of image files, one sub-folder per class, decoded when a batch asks for them."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkernels.data.augment import Augment
from qkernels.data.image_data import ImageData
from qkernels.data.paths import data_root
from qkernels.data.split import Split, hold_out
from qkernels.image_input import pixels_of
from qkernels.utils.extras import require

SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
VAL_FOLDERS = ("val", "valid", "validation")
HIDDEN = (".", "__", "@", "$")  # .git, .ipynb_checkpoints, __MACOSX, @eaDir, $RECYCLE.BIN
MEAN = (0.485, 0.456, 0.406)  # ImageNet, which every published model of that size expects
STD = (0.229, 0.224, 0.225)
BORDER = (1 - 224 / 256) / 2  # the evaluation protocol of He et al. 2016
LARGEST = 224
LOOKED_AT = 64  # files whose size decides that of the pictures


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Files as uint8 [channels, size, size]: the central square without its border. An ImageStore."""

    paths: tuple[Path, ...]
    size: int
    channels: int = 3
    border: float = BORDER

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), self.channels, self.size, self.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Raises ValueError with the path of a file that is no picture, whatever its decoder raises."""
        batch = torch.empty((len(index), *self.shape[1:]), dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes
            for row, image in enumerate(pool.map(self._decode, index.tolist())):
                batch[row] = image
        return batch

    def select(self, index: Tensor) -> ImageFiles:
        return replace(self, paths=tuple(self.paths[i] for i in index.tolist()))

    def digest(self) -> str:
        """Hash of the files' names, sizes and times, of which another set of pictures has others."""
        total = hashlib.blake2b(repr(self.shape).encode(), digest_size=16)
        for path in self.paths:
            facts = path.stat()
            total.update(f"{path.parts[-3:]} {facts.st_size} {facts.st_mtime_ns}".encode())
        return total.hexdigest()

    def faults(self) -> Iterator[str]:
        """Decode every file; what is wrong with each that cannot be, with its path."""
        for position in range(len(self)):
            try:
                self._decode(position)
            except ValueError as error:
                yield str(error)

    def _decode(self, position: int) -> Tensor:
        path = self.paths[position]
        image_module = require("PIL.Image")
        try:
            with image_module.open(path) as file:
                pixels = pixels_of(file, self.channels, (self.size, self.size), self.border)
        except Exception as error:  # decoders raise whatever damaged bytes lead them to
            raise ValueError(f"{path} is not a readable image: {error}") from error
        return torch.from_numpy(pixels.copy())


def load_imagefolder(
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Read `root/train/<class>/*` with `root/val/...` and `root/test/...`, the layout of ImageNet.

    A missing `val` (or `valid`, `validation`) is cut from train; a missing `test` is `val` (ImageNet's test labels are
    not public). A split folder with images and no class folders is unlabelled. Names that begin with ".", "__", "@" or
    "$" are no part of it; what else is left out, `ImageData.notes` says.

    Args:
        root: the folder; None: that of the data sets, see `data_root`.
        image_size: of the squares that the pictures become. None looks at the first files: pictures of 256 pixels and
            more become 224, without an eighth of their shorter side; smaller ones stay as large as they are.
        mean: per channel, of pixels in [0, 1]; one value makes the pictures grey.
        std: likewise.
        val_fraction: share of `train` that a missing `val` takes, in (0, 1).
        seed: of that choice.

    Raises:
        FileNotFoundError: without images in `train`.
        ValueError: for an unknown class folder and for a class folder of `train` without images.
    """
    base = data_root(root)
    reader = _Reader(base / "train", _val_folder(base))
    size, border = (image_size, BORDER) if image_size else reader.usual_size()
    channels = len(mean)

    def read(folder: Path) -> Split:
        paths, labels = reader.read(folder)
        return Split(ImageFiles(paths, size, channels, border), labels)

    train = read(base / "train")
    if reader.val is not None:
        val = read(reader.val)
    else:
        train, val = hold_out(train, val_fraction, seed)
    test = read(base / "test") if (base / "test").is_dir() else val
    augment = Augment(padding=size // 8, flip=True)
    return ImageData(
        "imagefolder", reader.classes, train, val, test, tuple(mean), tuple(std), augment, border,
        notes=tuple(reader.notes),
    )  # fmt: skip


class _Reader:
    """Which files of a folder are pictures of which class, and what is said about the others."""

    def __init__(self, train: Path, val: Path | None) -> None:
        self.train, self.val, self.notes = train, val, list[str]()
        self.classes = _folders(train) or (_folders(val) if val is not None else ())
        if not any(_images(folder) for folder in (train, *(train / c for c in self.classes))):
            raise FileNotFoundError(f"no images in {train}/<class>/")

    def read(self, folder: Path) -> tuple[tuple[Path, ...], Tensor | None]:
        """(files, labels) of a split."""
        loose = _images(folder)
        if loose and not _folders(folder):
            self._tell(folder, (folder,), len(loose))
            return loose, None
        unknown = [name for name in _folders(folder) if name not in self.classes]
        if unknown:
            raise ValueError(f"{folder} has the class {unknown[0]!r}, which train has not")
        found = {name: _images(folder / name) for name in self.classes}
        empty = [name for name in _folders(folder) if not found[name]]
        if empty and folder == self.train:
            raise ValueError(f"{folder / empty[0]} has no images: remove it, or fill it")
        paths = tuple(path for name in self.classes for path in found[name])
        labels = [label for label, name in enumerate(self.classes) for _ in found[name]]
        places = tuple(folder / name for name in self.classes)
        self._tell(folder, places, len(paths), beside=len(loose))
        return paths, torch.tensor(labels, dtype=torch.int64)

    def usual_size(self) -> tuple[int, float]:
        """(side, border) that suit the first files, by the median of their shorter sides."""
        files = [
            p for f in (self.train, *(self.train / c for c in self.classes)) for p in _images(f)
        ]
        sides = [side for path in files[:: -(-len(files) // LOOKED_AT)] if (side := _side(path))]
        usual = int(statistics.median(sides)) if sides else LARGEST
        if usual * 224 >= LARGEST * 256:
            return LARGEST, BORDER
        return max(8, min(LARGEST, usual) // 4 * 4), 0.0

    def _tell(self, folder: Path, places: tuple[Path, ...], kept: int, beside: int = 0) -> None:
        """Note how many files of a split are left out, and which; `beside` of them lie beside its class folders."""
        out: Counter[str] = Counter({"beside the class folders": beside} if beside else {})
        for place in places:
            for path in place.rglob("*") if place.is_dir() else ():
                inner = path.relative_to(place)
                if path.is_dir() or any(part.startswith(HIDDEN) for part in inner.parts):
                    continue
                if not path.is_file():
                    out["links to nothing"] += 1
                elif len(inner.parts) > 1:
                    out["in sub-folders"] += 1
                elif path.suffix.lower() not in SUFFIXES:
                    out[path.suffix.lower() or "without a suffix"] += 1
        if out:
            parts = ", ".join(f"{count} {what}" for what, count in out.most_common())
            self.notes.append(
                f"{folder}: kept {kept} of {kept + out.total()} files ({parts} left out)"
            )


def _val_folder(base: Path) -> Path | None:
    found = [base / name for name in VAL_FOLDERS if (base / name).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} are both validation images: keep one")
    return found[0] if found else None


def _side(path: Path) -> int:
    """The shorter side of a picture, 0 where its header cannot be read: decoding says why."""
    image_module: Any = require("PIL.Image")
    try:
        with image_module.open(path) as file:
            return min(file.size)
    except Exception:
        return 0


def _folders(folder: Path) -> tuple[str, ...]:
    found = (p.name for p in folder.glob("*") if p.is_dir())
    return tuple(sorted(name for name in found if not name.startswith(HIDDEN)))


def _images(folder: Path) -> tuple[Path, ...]:
    found = (p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return tuple(sorted(p for p in found if not p.name.startswith(HIDDEN)))
