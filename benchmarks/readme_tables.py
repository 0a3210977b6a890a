"""Copies the README's tables from the generated documents and from `jobs`, so that they cannot drift.

python benchmarks/readme_tables.py
"""

from __future__ import annotations

import re
from pathlib import Path

import jobs

ROOT = Path(__file__).parents[1]


def table_lines(document: str) -> list[str]:
    """All table lines of a document under docs/."""
    text = (ROOT / "docs" / document).read_text()
    return [line for line in text.splitlines() if line.startswith("|")]


def columns(lines: list[str], wanted: list[int]) -> list[str]:
    """The chosen columns of table lines."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return ["| " + " | ".join(row[i] for i in wanted) + " |" for row in cells]


def distillation() -> str:
    rows = table_lines("distillation.md")[:6]  # up to the int8 student of the default
    kept = [x for x in rows if not x.startswith("| student int8,")]
    return "\n".join(columns(kept, [0, 1, 2, 4]))


def accuracy() -> str:
    lines = ["| model | top-1 | change | agreement | size |", "| --- | --- | --- | --- | --- |"]
    text = (ROOT / "docs" / "accuracy.md").read_text()
    for name, body in re.findall(r"## (\w+)\n(.*?)(?=\n## |\Z)", text, re.S):
        for scheme in ("float32", "static, percentile", "dynamic"):
            row = next(x for x in body.splitlines() if x.startswith(f"| {scheme}"))
            lines.append(row.replace("| ", f"| {name}, ", 1))
    return "\n".join(lines)


def benchmarks() -> str:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    classes = text.partition("## Classes\n")[2].partition("\n## ")[0]
    lines = [x for x in classes.splitlines() if x.startswith("|")]
    links = re.sub(r"\(#", "(docs/benchmarks.md#", "\n".join(lines))
    return "\n".join(columns(links.splitlines(), [0, 1, 2, 3, 4]))


def lines() -> str:
    return jobs.table()


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for make in (distillation, accuracy, benchmarks, lines):
        name = make.__name__
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (mark and end):
            raise SystemExit(f"README.md has no place marked {name}")
        text = before + mark + make() + "\n" + end + after
    readme.write_text(text)


if __name__ == "__main__":
    main()
