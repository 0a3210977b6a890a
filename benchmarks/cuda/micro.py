"""The readings of single instructions (tests/native/cuda_micro_test.cpp) as a program for a device or for the emulator.

python benchmarks/cuda/micro.py

builds it for compute capability 9.0 into build/cuda with nvcc; no GPU is needed. Its name holds a hash of all that it
is made of: `run_all.py` takes it where it finds it, and builds it where it does not.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests/native/cuda_micro_test.cpp"
BUILT = ROOT / "build/cuda"
SECONDS = 30  # for all readings; they take milliseconds


class Unavailable(Exception):
    """A tool that is needed is not here; the message names it."""


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


def program_name(arch: str) -> str:
    """The name of the program of these sources: another where one of them has changed."""
    state = hashlib.sha256(arch.encode())
    for folder in ("csrc/core", "csrc/cuda"):
        for path in sorted((ROOT / folder).glob("*")):
            if path.is_file():
                state.update(path.read_bytes())
    state.update(SOURCE.read_bytes())
    return f"{SOURCE.stem}-{state.hexdigest()[:12]}"


def build_for_device(folder: Path, arch: str) -> Path:
    """The program for a compute capability as nvcc writes it, "90a"; the one in BUILT, or built in `folder`."""
    name = program_name(arch)
    for place in (BUILT, folder):
        if (place / name).exists():
            (place / name).chmod(0o755)
            return place / name
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-fmad=false", "--expt-relaxed-constexpr", "-x", "cu"]
    sources = [SOURCE, ROOT / "csrc/cuda/tensor_map.cu"]
    gencode = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    output_of([tool("nvcc"), *flags, gencode, *sources, "-o", folder / name])
    return folder / name


def build_for_emulator(folder: Path) -> Path:
    program = folder / SOURCE.stem
    tool("g++")
    output_of([tool("make"), "-s", f"BUILD={folder}", "ARCH=900", program], cwd=SOURCE.parent)
    return program


def output_of(command: list[Any], **options: Any) -> str:
    """What a command printed; an AssertionError with the end of that where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def readings(program: Path) -> dict[str, str]:
    """Verdicts by reading; an AssertionError that names the wrong ones, or the last before one that never ended."""
    try:
        done = subprocess.run(
            [program], capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as late:
        text = (late.stdout or b"").decode()
        raise AssertionError(f"{text}\nthe next reading did not end within {SECONDS} s") from late
    lines = [line.rpartition(": ") for line in done.stdout.splitlines()]
    wrong = [name for name, _, verdict in lines if verdict.startswith("wrong")]
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nwrong: {wrong}"
    return {name: verdict for name, _, verdict in lines}


if __name__ == "__main__":
    print(build_for_device(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILT, "90a"))
