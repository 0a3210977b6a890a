"""Which data is meant, as a value that commands take in flags."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qkernels.data.image_data import ImageData
from qkernels.data.registry import load


class DataChoice(BaseModel):
    """A data set by name, and how its pictures are taken. pydantic raises ValidationError naming the field at fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(
        "digits", description="Data set: see `qkernels info`; or a function, package.module:load."
    )
    data_root: Path | None = Field(None, description="Folder of the data, else $QKERNELS_DATA.")
    image_size: int | None = Field(
        None, ge=1, description="Side of the pictures of a folder, else as its files suggest."
    )
    mean: str = Field("", description="Its mean a channel, such as 0.5,0.5,0.5; one value: grey.")
    std: str = Field("", description="Its standard deviation a channel, as the mean.")

    @field_validator("mean", "std")
    @classmethod
    def _numbers(cls, text: str) -> str:
        _values(text)
        return text

    def load_data(self) -> ImageData:
        """The data. Raises as `qkernels.data.load`, and ValueError for a mean without a std."""
        if bool(self.mean) != bool(self.std):
            raise ValueError("--mean and --std go together: give both or neither")
        options = {
            "image_size": self.image_size,
            "mean": _values(self.mean),
            "std": _values(self.std),
        }
        given = {name: value for name, value in options.items() if value}
        return load(self.data, self.data_root, **given)


def _values(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError("must be numbers, such as 0.5,0.5,0.5") from None
