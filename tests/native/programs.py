"""Building and running the C++ programs of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


def build(
    tmp_path: Path, *variables: str, program: str = "kernels_test", folder: Path = HERE
) -> Path:
    """A test program of `folder`, built in `tmp_path`."""
    target = tmp_path / program
    command = ["make", "-s", f"-j{os.cpu_count() or 1}", f"BUILD={tmp_path}", *variables, target]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "MAKEFLAGS": ""})
    return target


def emulated(tree: Path, program: str, arch: int) -> Path:
    """A program of `tree` for an architecture; its folder is kept, so that only what changed is compiled."""
    return build(
        tree / f"build{arch}", f"ARCH={arch}", program=program, folder=tree / "tests/native"
    )


@contextmanager
def planted(
    tree: Path, file: str, text: str, becomes: str, program: str, arch: int
) -> Iterator[Path]:
    """The emulated program with a fault: in `file`, `text`, which occurs once, is replaced.

    Sources and objects are then what they were, with the times of their last change, so that the next fault compiles
    what it changes and no more.
    """
    emulated(tree, program, arch)
    source, objects = tree / file, tree / f"build{arch}"
    original, kept = source.read_text(), source.stat()
    assert original.count(text) == 1, "the fault's text must occur once"
    aside = shutil.copytree(objects, tree / "aside")
    source.write_text(original.replace(text, becomes))
    try:
        yield emulated(tree, program, arch)
    finally:
        source.write_text(original)
        os.utime(source, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        shutil.rmtree(objects)
        aside.rename(objects)


def run(*command: str | Path) -> tuple[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout, done.stderr
