"""What the compiler made of the CUDA kernels: registers, spills and the instructions that count."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import qkernels
from qkernels.measuring.machine import cuda_built

LIBRARY = Path(qkernels.__file__).with_name("_C.abi3.so")
TOOLS = Path(sysconfig.get_paths()["purelib"]) / "nvidia/cu13/bin"

pytestmark = pytest.mark.skipif(not cuda_built(), reason="built without nvcc")


def cuobjdump(*arguments: str) -> str:
    tool = shutil.which("cuobjdump", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("cuobjdump is not installed (pip: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm)")
    environment = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    command = [tool, *arguments, str(LIBRARY)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


@pytest.fixture(scope="module")
def usage() -> list[tuple[str, str, dict[str, int]]]:
    """Architecture, mangled name and resources of every kernel."""
    rows, arch, name = [], "", ""
    for line in cuobjdump("-res-usage").splitlines():
        if line.startswith("arch = "):
            arch = line.split()[-1]
        elif line.strip().startswith("Function "):
            name = line.split()[1].rstrip(":")
        elif line.strip().startswith("REG:"):
            rows.append((arch, name, {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}))
    return rows


def test_no_kernel_spills(usage: list[tuple[str, str, dict[str, int]]]) -> None:
    assert len(usage) > 20
    spilled = [(arch, name) for arch, name, r in usage if r["STACK"] or r["LOCAL"]]
    assert not spilled


def threads_of(name: str) -> int:
    """Of a block of gemm_kernel, from its tile BM, BN, BK, WM, WN in the mangled name."""
    bm, bn, _, wm, wn = map(int, re.findall(r"Li(\d+)E", name)[:5])
    return bm // wm * (bn // wn) * 32


def test_two_blocks_of_products_fit_a_multiprocessor(
    usage: list[tuple[str, str, dict[str, int]]],
) -> None:
    """64 K registers; one block computes while the other waits for memory or stores."""
    products = [
        (arch, name, r["REG"]) for arch, name, r in usage if "gemm_kernelINS0_4Tile" in name
    ]
    assert products
    full = [row for row in products if 2 * threads_of(row[1]) * ((row[2] + 7) // 8 * 8) > 65536]
    assert not full


@cache
def instructions(arch: str) -> dict[str, Counter[str]]:
    """Opcodes by kernel; empty where the library holds no code for the architecture."""
    counts: dict[str, Counter[str]] = {}
    name = ""
    for line in cuobjdump("-sass", "-arch", arch).splitlines():
        if found := re.search(r"Function : (\S+)", line):
            name = found[1]
            counts[name] = Counter()
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9._x]*)", line):
            counts[name][found[1]] += 1
    return counts


def matching(counts: Counter[str], pattern: str) -> int:
    return sum(n for op, n in counts.items() if re.match(pattern, op))


# Of a warp's tile, all k steps of a stage: WM / 16 * WN / 8 * BK / 32 products; four times as many of 8x8x16.
PRODUCTS = {
    "128ELi128ELi64": 64,
    "64ELi128ELi128": 64,
    "32ELi64ELi128": 16,
    "128ELi64ELi64": 32,
    "64ELi64ELi64": 64,
}


@pytest.mark.parametrize(("arch", "product"), [("sm_75", "IMMA.8816"), ("sm_80", "IMMA.16832")])
def test_kernels_are_made_of_the_instructions_they_are_written_for(arch: str, product: str) -> None:
    kernels = instructions(arch)
    if not kernels:
        pytest.skip(f"built without {arch}")
    turing = arch == "sm_75"
    found = 0
    for name, counts in kernels.items():
        assert not matching(counts, r"LDL|STL"), f"{name} uses local memory"
        assert not matching(counts, r"IMMA.*SAT"), f"{name} saturates sums"
        tile = re.search(r"gemm_kernel.*?TileILi(\d+ELi\d+ELi\d+)E", name)
        if tile is None or turing != ("ELi750E" in name):
            continue
        found += 1
        assert matching(counts, re.escape(product)) == PRODUCTS[tile[1]], name
        assert matching(counts, r"LDSM.*M88\.4") > 0
        assert matching(counts, r"LDS(\.U)?\.128") > 0
        if not turing and "AnyWindows" not in name:
            assert matching(counts, r"LDGSTS.*128") > 0
    assert found >= 4
    for name, counts in kernels.items():
        if "skinny" in name:
            assert matching(counts, re.escape(product)) >= 4, name
            assert matching(counts, r"LDG\.E.*128") >= 4, name


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
def test_a_kernel_made_for_other_architectures_traps_and_takes_no_block(arch: str) -> None:
    """launch() compares a kernel's threads with the block's, and refuses to start it."""
    kernels = instructions(arch)
    if not kernels:
        pytest.skip(f"built without {arch}")
    names = {
        name
        for name in kernels
        if ("ELi750E" in name) == (arch == "sm_75") and "gemm_kernel" in name
    }
    made = {name for name in names if matching(kernels[name], "IMMA")}
    others = {n for n in kernels if matching(kernels[n], r"BPT\.TRAP")}
    assert names == made and others
    room, name = {}, ""
    for line in cuobjdump("-elf", "-arch", arch).splitlines():
        if line.startswith(".nv.info."):
            name, wanted = line.removeprefix(".nv.info."), False
        elif "Attribute:" in line:
            wanted = "EIATTR_MAX_THREADS" in line
        elif "Value:" in line and name and wanted:
            room[name] = int(line.split()[1], 16)
    assert {room[name] for name in others} == {32}
    assert all(room[name] > 32 for name in made)


def test_later_models_of_an_architecture_find_code_to_translate() -> None:
    """A major version from 10.0 on has members that were not built for: it needs PTX of its own."""
    built = {a for a in re.findall(r"sm_(\d+)", cuobjdump("-lelf")) if int(a) >= 100}
    if not built:
        pytest.skip("built for 9.0 and below")
    translated = {a[:-1] for a in re.findall(r"(?:sm|compute)_(\d+)", cuobjdump("-lptx"))}
    assert {a[:-1] for a in built} <= translated


def test_hopper_kernels_are_made_of_warpgroup_products_and_bulk_copies() -> None:
    """Four k steps by two products a stage, and one wait for them; weights and rows of x by the copy engine."""
    kernels = {n: c for n, c in instructions("sm_90a").items() if "hopper_kernel" in n}
    if not kernels:
        pytest.skip("built without sm_90a")
    assert len(kernels) == 2
    for name, counts in kernels.items():
        assert matching(counts, r"IGMMA\.64x128x32\.S8\.S8") == 8, name
        assert matching(counts, r"WARPGROUP\.DEPBAR") == 1, name
        assert matching(counts, r"USETMAXREG") == 2, name
        assert matching(counts, r"UTMALDG\.3D") == 1, name
        assert matching(counts, r"UTMALDG\.2D") == ("RowsFeed" in name), name
        assert matching(counts, r"LDGSTS.*128") == (16 if "WindowsFeed" in name else 0), name
        assert matching(counts, r"SYNCS.*TRYWAIT") >= 2, name
        assert not matching(counts, r"LDL|STL"), f"{name} uses local memory"


def test_hopper_warpgroups_start_with_registers_that_they_can_trade(
    usage: list[tuple[str, str, dict[str, int]]],
) -> None:
    """384 threads by 168 are what 64 K registers allow; setmaxnreg moves them afterwards."""
    registers = {
        r["REG"] for arch, name, r in usage if arch == "sm_90a" and "hopper_kernel" in name
    }
    assert registers in (set(), {168})


def test_the_library_needs_nothing_of_cuda_or_unstable_torch_to_load() -> None:
    if not shutil.which("nm") or not shutil.which("readelf"):
        pytest.skip("binutils are not installed")
    undefined = subprocess.run(
        ["nm", "-D", "-u", "-C", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    assert not re.findall(r" U (?:at|c10|torch|cu[A-Z]\w+|cuda[A-Z]\w+)(?:::|\b)", undefined)
    needed = subprocess.run(
        ["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    assert not re.findall(r"NEEDED.*(?:cuda|nv)", needed)


def test_inner_loops_stay_within_their_budget_of_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nearly every kernel is limited by the instructions it issues: docs/cuda-instructions.md."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks/cuda"))
    machine_code = importlib.import_module("machine_code")
    if not instructions("sm_90a"):
        pytest.skip("built without sm_90a")
    above = [(b.work, n, b.most) for b, n in machine_code.measured(LIBRARY) if n > b.most]
    assert not above
