"""A teacher's answers kept on disk, so that an image it has seen costs a look-up."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.distill.objective import frozen
from qkernels.modules.answers import logits_of

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS teacher (kind TEXT, digest TEXT);
CREATE TABLE IF NOT EXISTS answers (image BLOB PRIMARY KEY, logits BLOB) WITHOUT ROWID;
"""


class CachedTeacher(nn.Module):
    """Answers from the file `path` where it knows the image, else asks `teacher` and remembers.

    An image is known by a hash of its pixels as the model sees them, cropped, flipped and normalised, and by the
    autocast precision: an answer is never that of another image, whatever happens to data, seed or augmentation.
    The batches of an epoch repeat exactly, so a second run of the same seed and epochs finds every answer.
    Where torch's last bits depend on the batch that an image is in, an answer has those of the batch that first asked.
    float32 logits of K classes take about 4 K + 40 bytes an image and augmentation.

    Every batch is one transaction of SQLite: a killed run leaves a sound file, several processes may share one.
    [N, C, H, W] -> float32 [N, K].
    """

    def __init__(self, teacher: nn.Module | None, path: str | Path) -> None:
        """`teacher=None`: only known images are answered. The teacher is held `frozen`.

        Raises ValueError if the file holds the answers of another teacher or is no such file.
        """
        super().__init__()
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(
                f"{self.path} is a folder: name the file that keeps the teacher's answers"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.teacher = None if teacher is None else frozen(teacher)
        self._file = self._open()
        self.kind, self.digest = self._agree()

    def forward(self, images: Tensor) -> Tensor:
        keys = _keys(images)
        rows = [self._read(key) for key in keys]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            some = images if len(missing) == len(rows) else images[missing]
            new = dict(zip(missing, self._ask(some), strict=True))
            rows = [new.get(i, row) for i, row in enumerate(rows)]
            self._write([(keys[i], row) for i, row in new.items()])
        logits = torch.frombuffer(bytearray().join(filter(None, rows)), dtype=torch.float32)
        return logits.view(len(rows), -1).to(images.device)

    def __len__(self) -> int:
        """Answers in the file."""
        return int(self._file.execute("SELECT count(*) FROM answers").fetchone()[0])

    def extra_repr(self) -> str:
        return f"{self.path}: {len(self):,} answers of {self.kind}"

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedTeacher:
        return self  # it holds nothing that a copy would protect

    def _read(self, key: bytes) -> bytes | None:
        query = "SELECT logits FROM answers WHERE image = ?"
        row = self._file.execute(query, (key,)).fetchone()
        return None if row is None else row[0]

    def _write(self, rows: list[tuple[bytes, bytes]]) -> None:
        with self._file:
            self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    def _ask(self, images: Tensor) -> list[bytes]:
        if self.teacher is None:
            raise ValueError(
                f"{self.path} lacks {len(images)} images of a batch (other data, augmentation, seed or precision?): "
                "give the teacher to answer them"
            )
        with torch.no_grad():
            return [row.tobytes() for row in logits_of(self.teacher, images).float().cpu().numpy()]

    def _open(self) -> sqlite3.Connection:
        try:
            file = sqlite3.connect(self.path, timeout=60)
            file.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise ValueError(f"{self.path} holds no answers of a teacher: {error}") from error
        return file

    def _agree(self) -> tuple[str, str]:
        """Name and digest of the teacher whose answers these are."""
        with self._file:
            row = self._file.execute("SELECT kind, digest FROM teacher").fetchone()
            if row is None:
                if self.teacher is None:
                    raise ValueError(f"{self.path} holds no answers of a teacher: give the teacher")
                row = (describe(self.teacher), digest(self.teacher))
                self._file.execute("INSERT INTO teacher VALUES (?, ?)", row)
        if self.teacher is not None and row[1] != digest(self.teacher):
            raise ValueError(
                f"{self.path} holds the answers of another teacher ({row[0]}): take another file"
            )
        return row


def describe(model: nn.Module) -> str:
    """What a run folder remembers of a model."""
    if isinstance(model, CachedTeacher):
        return model.kind
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__}, {count} parameters"


def digest(model: nn.Module) -> str:
    """Hash of all names and tensors of a state dict; of a cached teacher, the teacher's."""
    if isinstance(model, CachedTeacher):
        return model.digest
    total = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _keys(images: Tensor) -> list[bytes]:
    kind = images.device.type
    low = torch.is_autocast_enabled(kind)
    precision = str(torch.get_autocast_dtype(kind) if low else images.dtype).encode()
    pixels = images.float().cpu().contiguous().numpy()
    return [hashlib.blake2b(row, digest_size=16, person=precision).digest() for row in pixels]
