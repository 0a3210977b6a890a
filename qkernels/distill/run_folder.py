"""The folder of one training run: settings, history, and a checkpoint that survives any kill.

config.json      what the run is: settings, data, model, teacher
checkpoint.pt    weights, optimizer state, history and epoch of the last finished epoch
history.jsonl    one line per finished epoch
model.safetensors    the final weights, once the run is finished
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qkernels.models.weights import plain_name
from qkernels.utils.errors import first_line
from qkernels.utils.files import replacing

START = "start"  # in config.json


class RunFolder:
    """A run folder opened for the run that `description` (JSON values by name) describes.

    An existing folder is continued only if it was made by the same run; `resume=False` starts over. What one of
    the two does not name is not compared. Raises ValueError naming the first field that differs.
    """

    def __init__(
        self,
        path: str | Path,
        description: dict[str, Any],
        start: str | None = None,
        *,
        resume: bool,
        defaults: Mapping[str, Any] | None = None,
        extend: bool = False,
    ) -> None:
        """Nothing is read or written yet.

        `start`: digest of the weights that a run begins with. Other ones are a warning and no error: they are not
        read again, and a model that was made without a seed has others in every process.
        `extend`: a finished run goes on for more epochs, by the schedule of the new length.
        `defaults`: values of settings that a folder of an earlier version does not name.
        """
        self.path = Path(path)
        self.description, self.start = description, start
        self.resume, self.defaults = resume, defaults or {}
        self._extend, self._longer = extend, False
        if resume and (self.path / "config.json").exists():
            self._refuse_other_run(json.loads((self.path / "config.json").read_text()))

    def create(self) -> None:
        """Write config.json; without resume, remove what an earlier run has left."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.resume:
            for name in ("checkpoint.pt", "history.jsonl", "model.safetensors"):
                (self.path / name).unlink(missing_ok=True)
        self._write_config()

    def _finished(self) -> bool:
        return (self.path / "model.safetensors").exists()

    def _write_config(self) -> None:
        text = json.dumps(self.description | {START: self.start}, indent=2) + "\n"
        with replacing(self.path / "config.json") as file:
            file.write_text(text)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint on the CPU, or None if there is none to resume from."""
        path = self.path / "checkpoint.pt"
        if not self.resume or not path.exists():
            return None
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch says of a file that is cut off
            raise ValueError(
                f"{path} is damaged ({first_line(error)}): remove it to begin this run again"
            ) from error
        return checkpoint

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Replace the checkpoint, then the history that it holds."""
        if self._longer:
            self._write_config()
            self._longer = False
        with replacing(self.path / "checkpoint.pt") as file:
            torch.save(checkpoint, file)
        lines = "".join(json.dumps(record) + "\n" for record in checkpoint["history"])
        with replacing(self.path / "history.jsonl") as file:
            file.write_text(lines)

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        """Write the final weights as model.safetensors."""
        plain = {plain_name(n): tensor.detach().cpu().contiguous() for n, tensor in weights.items()}
        first: dict[int, str] = {}
        for name, tensor in plain.items():  # safetensors holds no tensor under two names
            if first.setdefault(tensor.untyped_storage().data_ptr(), name) != name:
                plain[name] = tensor.clone()
        with replacing(self.path / "model.safetensors") as file:
            save_file(plain, file)

    def _refuse_other_run(self, found: dict[str, Any]) -> None:
        start = found.pop(START, None)
        for name, new in sorted(self.description.items()):
            old = found.get(name, self.defaults.get(name, new))
            if name == "epochs" and self._extend and new > old and self._finished():
                self._longer = True
            elif old != new:
                raise ValueError(
                    f"{self.path} holds a run with {name}={old!r}, not {new!r}: "
                    "take another run_dir, or resume=False to start over"
                )
        if start not in (None, self.start):
            warnings.warn(
                f"{self.path} began with other weights than those given, and goes on from its own: "
                "take another run_dir, or resume=False to start over",
                stacklevel=4,
            )
