"""Image data sets in memory, and seeded batches of them."""

from qkernels.data.augment import Augment
from qkernels.data.batches import Batches
from qkernels.data.cifar10 import download_cifar10
from qkernels.data.image_data import ImageData
from qkernels.data.own import from_datasets
from qkernels.data.registry import available, load
from qkernels.data.split import ImageStore, Split, hold_out
from qkernels.data.task import Labels

__all__ = [
    "Augment",
    "Batches",
    "ImageData",
    "ImageStore",
    "Labels",
    "Split",
    "available",
    "download_cifar10",
    "from_datasets",
    "hold_out",
    "load",
]
