"""Instructions that the compiler made of the kernels' inner loops, counted in the built library, beside their budgets.

python benchmarks/cuda/machine_code.py [LIBRARY]

writes docs/cuda-instructions.md; `tests/cuda/test_machine_code.py` fails where a loop is above its budget. No GPU is
needed, but cuobjdump and nvdisasm (pip: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "qkernels/_C.abi3.so"
DOCUMENT = ROOT / "docs/cuda-instructions.md"
TOOLS = Path(sysconfig.get_paths()["purelib"]) / "nvidia/cu13/bin"


class Unavailable(Exception):
    """The disassembler is not here; the message says where it comes from."""


@cache
def cuobjdump(library: Path, *arguments: str) -> str:
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    tool = shutil.which("cuobjdump", path=path)
    if tool is None:
        raise Unavailable(
            "cuobjdump is not installed (pip: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm)"
        )
    command = [tool, *arguments, str(library)]
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


class Instruction(NamedTuple):
    address: int
    opcode: str
    target: int  # of a branch; -1 of others


Code = list[Instruction]


@cache
def kernels(library: Path, arch: str) -> dict[str, Code]:
    """Instructions by mangled name; empty where the library holds no code for the architecture."""
    found: dict[str, Code] = {}
    name = ""
    for line in cuobjdump(library, "-sass", "-arch", arch).splitlines():
        if function := re.search(r"Function : (\S+)", line):
            name = function[1]
            found[name] = []
        elif one := re.search(
            r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9._x]*)([^;]*);", line
        ):
            branch = re.search(r"0x([0-9a-f]+)\s*$", one[3]) if one[2].startswith("BRA") else None
            target = int(branch[1], 16) if branch else -1
            found[name].append(Instruction(int(one[1], 16), one[2], target))
    return found


def opcodes(code: Code) -> Counter[str]:
    return Counter(instruction.opcode for instruction in code)


def matching(counts: Counter[str], pattern: str) -> int:
    return sum(n for op, n in counts.items() if re.match(pattern, op))


def inner_loops(code: Code) -> Iterator[Code]:
    """Bodies of loops that hold no other loop, both sides of their branches counted."""
    ends = [(i.target, i.address) for i in code if 0 <= i.target <= i.address]
    for first, last in ends:
        if first != last and not any(
            (a, b) != (first, last) and first <= a and b <= last for a, b in ends
        ):
            yield [i for i in code if first <= i.address <= last]


class Budget(NamedTuple):
    """A loop: where it is, how it is told from others, what it does, and how many instructions it may take for that."""

    work: str
    kernel: str  # a pattern of its mangled name
    loop: Callable[[Counter[str]], bool]
    units: int  # of that work in an iteration
    most: float  # instructions a unit
    goal: float | None  # of the review


def rows_end(loads: int, **stores: int) -> Callable[[Counter[str]], bool]:
    """Four rows of four outputs finished without branches, with so many loads and conversions of each kind."""
    names = {"bf16": r"F2FP\.BF16", "f16": r"F2FP\.F16"}

    def is_it(c: Counter[str]) -> bool:
        alike = all(matching(c, names[name]) == n for name, n in stores.items())
        four = matching(c, "STG") == 4 and matching(c, "I2FP") >= 16 and matching(c, "BRA") == 1
        return four and matching(c, "LDG") == loads and alike

    return is_it


def is_int8(loads: int) -> Callable[[Counter[str]], bool]:
    end = rows_end(loads, bf16=0, f16=0)
    return lambda c: end(c) and matching(c, "PRMT") >= 8


LARGE = r"gemm_kernel.*TileILi128ELi128E.*4Rows"
HOPPER = r"hopper_kernel.*RowsFeed"
BUDGETS = [
    Budget("epilogue, bfloat16, a scale a row, 4 outputs", LARGE, rows_end(8, bf16=8), 4, 41, 40),
    Budget("the same on Hopper, the way into its slab apart", HOPPER, rows_end(8, bf16=8), 4, 41, 40),
    Budget("epilogue, bfloat16, one scale, 4 outputs", LARGE, rows_end(0, bf16=8), 4, 29, 40),
    Budget("epilogue, int8, one scale, 4 outputs", LARGE, is_int8(0), 4, 46, 55),
    Budget("the same with an int8 residual", LARGE, is_int8(4), 4, 69, 70),
    Budget("loop of the large tile, 64 products", LARGE, lambda c: matching(c, "IMMA") == 64, 1, 358, 270),
    Budget(
        "loop of Hopper's consumers, 8 warpgroup products", HOPPER,
        lambda c: matching(c, "IGMMA") == 8, 1, 115, None,
    ),
]  # fmt: skip


def measured(library: Path = LIBRARY) -> list[tuple[Budget, float]]:
    """Instructions a unit for sm_90a of every budget, the most of the loops that do its work."""
    code = kernels(library, "sm_90a")
    rows = []
    for budget in BUDGETS:
        found = [
            len(loop) / budget.units
            for name, instructions in code.items()
            if re.search(budget.kernel, name)
            for loop in inner_loops(instructions)
            if budget.loop(opcodes(loop))
        ]
        if not found:
            raise LookupError(f"no loop does this: {budget.work}")
        rows.append((budget, max(found)))
    return rows


def document(rows: list[tuple[Budget, float]]) -> str:
    lines = [
        "# Instructions of the CUDA kernels",
        "",
        "Generated by `benchmarks/cuda/machine_code.py` from code for compute capability 9.0; nothing ran on a GPU. "
        "Counted are the bodies of inner loops, both sides of their branches. "
        "`tests/cuda/test_machine_code.py` fails above the budget; the goal is what the kernels were reviewed for.",
        "",
        "| work | instructions | budget | goal |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {b.work} | {n:g} | {b.most:g} | {b.goal or '-'} |" for b, n in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(measured(Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY)))
