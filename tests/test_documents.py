"""What README and docs say: every Python block runs, with small data, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import models
from qkernels.data import ImageData, Split
from qkernels.nn import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "csrc/README.md", *ROOT.glob("docs/**/*.md")])
sys.path.insert(0, str(ROOT / "tests/serve"))


def small_data() -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images, torch.arange(count) % 10)

    names = tuple("0123456789")
    return ImageData("small", names, split(32), split(16), split(16), (0.5,) * 3, (0.25,) * 3)


class MyConv(nn.Conv2d):
    """A kind of layer that somebody else wrote."""


class QuantMyConv(qk.QuantConv2d):
    """Its int8 form."""


def names() -> dict[str, Any]:
    """What the documents take as given."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    teacher, student = (models.create("resnet8", width=w).eval() for w in (8, 4))
    int8 = qk.quantize(student, calibration=[x])
    given = dict.fromkeys(("x", "example", "images", "another"), x)
    given |= {name: [x] for name in ("batches", "calibration")}
    given |= {"model": student, "student": student, "teacher": teacher, "int8": int8}
    given |= {"torch": torch, "qk": qk, "nn": nn, "MyConv": MyConv, "QuantMyConv": QuantMyConv}
    given |= {"chained": qk.compile(int8, x), "data": small_data()}
    return given | {"mean": [0.5] * 3, "std": [0.25] * 3, "__name__": "document"}


def server(tmp_path: Path, given: dict[str, Any]) -> AbstractContextManager[Any]:
    """The server that docs/serving.md has started before its first block."""
    pytest.importorskip("tritonclient.http")
    from serve_process import serving

    given["chained"].save(tmp_path / "student.qkp")
    return serving(tmp_path / "student.qkp", "--size", "1,3,32,32")


@dataclass(frozen=True)
class Page:
    """How a page is run: what is replaced, so that it takes seconds, and what is open meanwhile."""

    instead: dict[str, str]
    during: Callable[[Path, dict[str, Any]], AbstractContextManager[Any]] = lambda *_: nullcontext()


PLAIN = Page({})
RUN = {
    "README.md": PLAIN,
    "docs/adversarial.md": Page({"steps=10": "steps=1", "TrainConfig()": "TrainConfig(epochs=1)"}),
    "docs/cuda.md": Page({} if torch.cuda.is_available() else {'"cuda"': '"cpu"'}),
    "docs/datafree.md": Page(
        {
            "images=128": "images=4, steps=2",
            "epochs=20": "epochs=1",
            "batch_size=128": "batch_size=8",
            "50_000": "16",
            "sample(100)": "sample(4)",
        }
    ),
    # AOTInductor compiles for a minute; tests/export has it.
    "docs/export.md": Page(
        {"package = torch._inductor": "torch._inductor.aoti_load_package and 0 #"}
    ),
    "docs/graph.md": Page({"y = program(x)": "y = program(x.numpy())"}),
    "docs/parallel.md": Page({'"cuda:0", "cuda:1"': '"cpu", "cpu"'}),
    "docs/pruning.md": Page({"epochs=20": "epochs=1"}),
    "docs/quantization.md": PLAIN,
    "docs/serving.md": Page({"size=(224, 224)": "size=(32, 32)"}, server),
}
ELSEWHERE = {  # tests/distill/test_guide.py, tests/test_own_models.py, tests/test_tutorials.py
    "docs/distilling.md",
    "docs/own.md",
    "docs/five-minutes.md",
    "docs/torchvision.md",
    "docs/transformers.md",
}
NEEDS_GPU = {("docs/cuda.md", 1)}


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


def test_every_page_with_python_is_run_by_a_test() -> None:
    found = {str(page.relative_to(ROOT)) for page in PAGES if "```python" in page.read_text()}
    assert found == RUN.keys() | ELSEWHERE


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    if page == "README.md":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    given, texts = names(), blocks(page)
    for old in RUN[page].instead:
        assert any(old in text for text in texts), f"{old} is not in {page}"
    with RUN[page].during(tmp_path, given) as served:
        for index, text in enumerate(texts):
            for old, new in RUN[page].instead.items():
                text = text.replace(old, new)
            if served is not None:
                text = text.replace("localhost:8080", served.address)
            code = compile(text, f"{page}, block {index}", "exec")
            if torch.cuda.is_available() or (page, index) not in NEEDS_GPU:
                exec(code, given)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """mkdocs is strict: a broken link, or a parameter that a docstring names and a function lacks, ends the build."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = ["-m", "mkdocs", "build", "-d", tmp_path / "site"]
    for command in ([ROOT / "docs/site.py"], build):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=quiet, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (
        "qkernels.quantization.convert.quantize"
        in (tmp_path / "site/reference/quantization.html").read_text()
    )


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and (not anchor or anchor in anchors(target))
        broken += [] if there else [link]
    assert not broken
