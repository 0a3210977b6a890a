"""A whole image data set: three splits and what is needed to feed a model with them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

from qkernels.data.augment import Augment
from qkernels.data.batches import Batches
from qkernels.data.split import Split
from qkernels.data.task import Labels
from qkernels.image_input import ImageInput


@dataclass(frozen=True, eq=False)
class ImageData:
    """Named splits of one data set.

    `mean` and `std` are per channel, of pixels scaled to [0, 1]; `augment` is what suits the data
    (None: nothing). `val` is never part of `train`; it may be empty. `border` is the share of each
    edge that the images have lost, see `ImageInput`. `notes` say what of the files was left out. `meaning` is that of
    the labels; `class_names` are the names of the outputs, also where those are values.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None = None
    border: float = 0.0
    notes: tuple[str, ...] = ()
    meaning: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        channels = self.train.images.shape[1]
        if any(not 0 < value < math.inf for value in self.std):
            raise ValueError(
                f"{self.name}: std={self.std} must be positive: pixels are divided by it"
            )
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"{self.name}: mean and std must have {channels} values, "
                f"not {len(self.mean)} and {len(self.std)}"
            )

        for split in (self.train, self.val, self.test):
            wanted = "int64 [N]" if self.meaning.task == "multiclass" else "float [N, K]"
            if split.labels is not None and split.labels.is_floating_point() != (
                wanted != "int64 [N]"
            ):
                raise ValueError(
                    f"{self.name}: {self.meaning.task} labels must be {wanted}, not {split.labels.dtype} "
                    f"{list(split.labels.shape)}"
                )

    @property
    def num_classes(self) -> int:
        """How many outputs a model of this data has."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), or whatever shape an input has."""
        return tuple(self.train.images.shape[1:])  # type: ignore[return-value]

    @property
    def image_input(self) -> ImageInput | None:
        """How a picture becomes like these, for files of models trained on them; None where their data set does it."""
        if self.train.normalised or self.meaning.task != "multiclass":
            return None
        return ImageInput(self.class_names, self.image_shape[1:], self.mean, self.std, self.border)

    def split(self, name: str) -> Split:
        """The split called train, val or test; ValueError for another name."""
        if name not in ("train", "val", "test"):
            raise ValueError(f"split must be train, val or test, not {name!r}")
        part: Split = getattr(self, name)
        return part

    def batches(
        self, split: str, batch_size: int, *, augment: bool = False, **options: Any
    ) -> Batches:
        """Batches of a split, normalised with this data's mean and std.

        `augment` applies the augmentation that suits this data. `options` are the other fields of
        `Batches`: shuffle, seed, drop_last, channels_last, dtype, device, rank, world_size.
        """
        options["augment"] = self.augment if augment else None
        return Batches(self.split(split), batch_size, self.mean, self.std, **options)

    def digest(self) -> str:
        """Hash of what a training reads: images and labels of train and val, their order, scale and meaning."""
        shown = hashlib.blake2b(repr((self.mean, self.std, self.meaning)).encode(), digest_size=4)
        return f"{self.train.digest()}-{self.val.digest()}-{shown.hexdigest()}"

    def with_train(self, train: Split) -> ImageData:
        """The same data with other training images, such as new ones without labels."""
        return replace(self, train=train)
