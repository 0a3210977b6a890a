"""The tutorials from top to bottom, the shell's commands too: what a page serves is what its later lines ask."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/serve"))
ADDRESS = "localhost:8080"


def photos() -> None:
    """Folders of made pictures, for pages that take a person's own."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        folder = Path("photos") / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (240, 300, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.jpg")


@dataclass(frozen=True)
class Tutorial:
    """What a page needs, what is replaced in it so that it takes seconds, and what is there before it begins."""

    packages: tuple[str, ...]
    instead: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None


TUTORIALS = {
    "five-minutes.md": Tutorial(
        ("accelerate", "sklearn"),
        {
            '"epochs": 10': '"epochs": 2',
            "data.image_shape)": "data.image_shape, seconds=0.02, rounds=2)",
        },
    ),
    "torchvision.md": Tutorial(
        ("torchvision",), {"resnet18(weights=weights)": "resnet18()"}, photos
    ),
    "transformers.md": Tutorial(("transformers",)),
}


class Reader:
    """Somebody who types what a page says; `address` is where the server that it started listens."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.address = ADDRESS
        self.names: dict[str, Any] = {"__name__": "tutorial"}

    def python(self, text: str, where: str) -> None:
        exec(compile(text.replace(ADDRESS, self.address), where, "exec"), self.names)

    def bash(self, text: str, where: str) -> None:
        for line in text.strip().splitlines():
            words = shlex.split(line.replace(ADDRESS, self.address))
            if words[:2] == ["qkernels", "serve"]:
                self.serve(words[2:])
            else:
                done = subprocess.run(words, capture_output=True, text=True)
                assert done.returncode == 0 and '"error"' not in done.stdout, f"{where}: {done}"

    def serve(self, words: list[str]) -> None:
        from serve_process import serving

        self.address = self.stack.enter_context(serving(*words)).address


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_does_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tutorial, text = TUTORIALS[page], (ROOT / "docs" / page).read_text()
    for package in ("uvicorn", "httpx2", *tutorial.packages):
        pytest.importorskip(package)
    for old, new in tutorial.instead.items():
        assert old in text, f"{old} is not in {page}"
        text = text.replace(old, new)
    monkeypatch.chdir(tmp_path)
    tutorial.before()
    with ExitStack() as stack:
        reader = Reader(stack)
        for index, (language, block) in enumerate(
            re.findall(r"```(python|bash)\n(.*?)```", text, re.S)
        ):
            getattr(reader, language)(block, f"{page}, block {index}")
        assert reader.address != ADDRESS, f"{page} serves nothing"
