"""Files that are whole whenever somebody reads them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qkernels.utils.errors import first_line


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path of the same name to write to, whose file takes the place of ``path`` at the end, unless there is an error.

    Readers see the file that was there or the whole new one, also after a power cut.

    Raises:
        OSError: it cannot be written; of what a full disk is to torch and safetensors too.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} could not be written: there is no folder {path.parent}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        aside = Path(folder) / path.name
        try:
            aside.touch()
            mode = aside.stat().st_mode
            yield aside
            aside.chmod(mode)  # safetensors hides its files from others
            _flush(aside)
            os.replace(aside, path)
        except _full_disk() as error:
            raise OSError(
                f"{path} could not be written ({first_line(error)}): what was there before is kept"
            ) from error
    with suppress(OSError):  # not every file system can
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until the disk has it; of a folder, the names in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _full_disk() -> tuple[type[Exception], ...]:
    """What writing raises where it fails: torch a RuntimeError, safetensors an error of its own."""
    library = sys.modules.get("safetensors")  # not imported for those that do without
    return (OSError, RuntimeError, *([library.SafetensorError] if library else []))
