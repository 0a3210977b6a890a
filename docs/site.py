"""Lays out what mkdocs builds the site of: README, docs, csrc/README.md and a reference page a module.

    python docs/site.py && mkdocs build

The pages stay what GitHub shows; links to files that are no pages of the site are taken out here, text kept.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "site-pages"
PAGES = {"index.md": "README.md", "csrc.md": "csrc/README.md", "changelog.md": "CHANGELOG.md"}
REFERENCE = {  # page -> (heading, modules whose public names it has)
    "quantization": ("Quantization", ["qkernels.quantization", "qkernels.qat"]),
    "graph": ("Compile and run", ["qkernels.graph", "qkernels.program", "qkernels.measuring.speed"]),
    "recovery": ("Recovery", ["qkernels.recovery"]),
    "distill": ("Distillation", ["qkernels.distill", "qkernels.datafree", "qkernels.adversarial"]),
    "prune": ("Pruning", ["qkernels.prune", "qkernels.advise"]),
    "others": (
        "Other modules",
        ["qkernels.models", "qkernels.data", "qkernels.pipeline", "qkernels.parallel",
         "qkernels.export", "qkernels.plain"],
    ),
    "qkernels": ("qkernels", ["qkernels.nn", "qkernels.ops", "qkernels.reports", "qkernels"]),
}  # fmt: skip


def main() -> None:
    """Write every page under build/site-pages."""
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(ROOT / "docs", OUT, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    sources = {OUT / page: ROOT / source for page, source in PAGES.items()}
    sources |= {OUT / p.relative_to(ROOT / "docs"): p for p in (ROOT / "docs").rglob("*.md")}
    targets = {source: page for page, source in sources.items()}
    for page, source in sources.items():
        page.write_text(relinked(source, page, targets))
    (OUT / "reference").mkdir()
    seen: set[str] = set()
    for name, (heading, modules) in REFERENCE.items():
        (OUT / "reference" / f"{name}.md").write_text(reference(heading, modules, seen))


def relinked(source: Path, page: Path, targets: dict[Path, Path]) -> str:
    """The text of a page with links as the site has them."""

    def link(found: re.Match[str]) -> str:
        mark, text, address = found.groups()
        path, hash_, anchor = address.partition("#")
        if not path or re.match(r"https?:", address):
            return found[0]
        target = (source.parent / path).resolve()
        if target in targets:
            target = targets[target]
        elif target.is_relative_to(ROOT / "docs") and target.is_file():
            target = OUT / target.relative_to(ROOT / "docs")
        else:
            return text  # a file of the repository
        return f"{mark}[{text}]({os.path.relpath(target, page.parent)}{hash_}{anchor})"

    return re.sub(r"(!?)\[([^]]*)\]\(([^)\s]+)\)", link, source.read_text())


def reference(heading: str, modules: list[str], seen: set[str]) -> str:
    """Directives for every public name of the modules; a name that another page has is a link to it."""
    lines = [f"# {heading}"]
    for module in modules:
        found = importlib.import_module(module)
        lines += ["", f"## {module}", "", (found.__doc__ or "").strip(), ""]
        for name, value in public(found):
            home = f"{value.__module__}.{value.__qualname__}"
            if home in seen:
                lines += [f"- [`{module}.{name}`][{home}]", ""]
                continue
            seen.add(home)
            lines += [f"::: {home}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions and classes of ours that a module offers: those of `__all__`, or those that it defines itself."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        if callable(value) and str(value.__module__).startswith("qkernels"):
            yield name, value


if __name__ == "__main__":
    main()
