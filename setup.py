"""Builds the two extension modules: `_C` (torch operators, stable ABI) and `_core` (NumPy, pybind11).

The torch-free core is compiled once and linked into both. Every instruction-set file has its own flags; nothing
takes flags from the build machine. Ninja rebuilds only what changed.

CUDA kernels go into `_C` where nvcc is found: `QKERNELS_CUDA=0` leaves them out, `1` insists on them, `auto` is the
default. They need no GPU and no CUDA torch, neither here nor to load. `QKERNELS_CUDA_ARCHS` are compute capabilities;
`+PTX` adds code that later ones can translate.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = "0x020b000000000000"  # torch 2.11: the first complete stable ABI

COMMON = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-psabi",
]
# `make sanitize`: the same build with AddressSanitizer and UndefinedBehaviorSanitizer.
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
]
if os.environ.get("QKERNELS_SANITIZE"):
    COMMON += SANITIZE
COMMON += shlex.split(os.environ.get("CXXFLAGS", ""))  # last, so that they win
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# GCC 12 warns about its own AVX-512 headers: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
AVX512 = [
    *AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512vnni",
    "-mprefer-vector-width=512",
]
AVX512 += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
NEONDOT = ["-march=armv8.2-a+dotprod"]
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
ISA_FLAGS = {  # by the end of a file's name
    "_avx2": (X86, AVX2),
    "_avx512vnni": (X86, AVX512),
    "_amx": (X86, AVX512),
    "_neondot": (ARM, NEONDOT),
}


def isa_flags(source: Path, machine: str) -> list[str] | None:
    """Flags of an instruction-set file; None where the machine's family has no such set."""
    for suffix, (machines, flags) in ISA_FLAGS.items():
        if source.stem.endswith(suffix):
            return flags if machine in machines else None
    return []


def folder_of(package: str) -> Path:
    """The folder of a package, which is not imported: it may be built for another machine."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed, and the extension modules are built with it")
    return Path(found.origin).parent


CUDA_ARCHS = "7.5;8.0;8.6;8.9;9.0a;10.0+PTX;12.0+PTX"
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr"]
NVCC_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]


def find_nvcc() -> Path | None:
    """nvcc, unless QKERNELS_CUDA says 0; an error where it says 1 and there is none."""
    asked = os.environ.get("QKERNELS_CUDA", "auto")
    if asked not in ("0", "1", "auto"):
        raise SystemExit(f"QKERNELS_CUDA={asked!r} is unknown; choose one of 0, 1, auto")
    if asked == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home, "bin/nvcc") for home in homes if home]
    if on_path := shutil.which("nvcc"):
        places.append(Path(on_path))
    nvcc = next((place for place in places if place.exists()), None)
    if nvcc is None and asked == "1":
        raise SystemExit("QKERNELS_CUDA=1, but nvcc is neither in CUDA_HOME, CUDA_PATH nor PATH")
    return nvcc


def cuda_arch_flags() -> list[str]:
    flags = []
    for arch in os.environ.get("QKERNELS_CUDA_ARCHS", CUDA_ARCHS).replace(" ", "").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cudart_link_flags(nvcc: Path) -> list[str]:
    """The CUDA runtime, static: nothing of CUDA is needed to load the library."""
    root = nvcc.resolve().parent.parent
    folders = [root / "lib64", root / "lib", *root.glob("targets/*/lib")]
    for folder in folders:
        if (folder / "libcudart_static.a").exists():
            return [f"-L{folder}", "-lcudart_static", "-ldl", "-lrt", "-pthread"]
    raise SystemExit(
        f"{nvcc} has no libcudart_static.a beside it, in {', '.join(map(str, folders))}"
    )


class NinjaBuild(build_ext):
    """build_ext through one ninja file, with flags by source file."""

    def run(self) -> None:
        self.force = True  # ninja decides what is old
        super().run()

    def build_extensions(self) -> None:
        import pybind11

        machine = self.plat_name.rpartition("-")[2]  # of the wheel's tag: linux-aarch64
        torch_root = folder_of("torch")
        torch_lib = torch_root / "lib"
        torch_flags = [
            "-isystem",
            str(torch_root / "include"),
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        ]
        torch_flags += ["-isystem", str(torch_root / "include/torch/csrc/api/include")]
        numpy_flags = [
            "-isystem",
            pybind11.get_include(),
            "-isystem",
            sysconfig.get_paths()["include"],
        ]
        core = [
            s
            for pattern in ("cpu/*.cpp", "cpu/kernels/*.cpp", "cpu/steps/*.cpp", "front/*.cpp")
            for s in sorted((ROOT / "csrc").glob(pattern))
        ]
        link = {
            "_C": [f"-L{torch_lib}", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"],
            "_core": ["-pthread"],
        }
        if os.environ.get("QKERNELS_SANITIZE"):
            link = {name: [*flags, *SANITIZE] for name, flags in link.items()}
        if self.editable_mode:  # setuptools' folder is of one installation: all compiled anew
            self.build_temp = str(
                ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
            )
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        nvcc = find_nvcc()
        cuda_flags = ["-DQK_CUDA"] if nvcc else []
        lines = [
            "rule compile\n  command = $cxx -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n",
            "rule cuda\n  command = $nvcc -MD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n",
            "rule link\n  command = $cxx -shared $in -o $out $flags\n",
        ]

        def object_of(source: Path, rule: str, flags: list[str]) -> str:
            target = str(build_dir / source.relative_to(ROOT / "csrc")) + ".o"
            lines.append(f"build {target}: {rule} {source}\n  flags = {' '.join(flags)}\n")
            return target

        def compile_(source: Path, extra: list[str]) -> str:
            return object_of(source, "compile", COMMON + extra)

        objects = [compile_(s, flags) for s in core if (flags := isa_flags(s, machine)) is not None]
        fronts = {
            "_C": [
                compile_(s, torch_flags + cuda_flags)
                for s in sorted((ROOT / "csrc/torch").glob("*.cpp"))
            ],
            "_core": [
                compile_(s, numpy_flags) for s in sorted((ROOT / "csrc/numpy").glob("*.cpp"))
            ],
        }
        if nvcc:
            arch_flags = cuda_arch_flags()
            fronts["_C"] += [
                object_of(s, "cuda", NVCC_FLAGS + arch_flags)
                for s in sorted((ROOT / "csrc/cuda").glob("*.cu"))
            ]
            link["_C"] += cudart_link_flags(nvcc)
        for extension in self.extensions:
            name = extension.name.rsplit(".", 1)[-1]
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            inputs = " ".join(objects + fronts[name])
            lines.append(f"build {target}: link {inputs}\n  flags = {' '.join(link[name])}\n")
        ninja_file = build_dir / "build.ninja"
        ninja_file.write_text(
            f"builddir = {build_dir}\ncxx = {os.environ.get('CXX', 'g++')}\nnvcc = {nvcc}\n"
            + "\n".join(lines)
        )
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(
            [sys.executable, "-m", "ninja", "-f", str(ninja_file), "-j", jobs], check=True
        )

    def get_ext_filename(self, fullname: str) -> str:
        # _C is a torch library, not a Python module: the same file serves every CPython.
        if fullname.endswith("_C"):
            return os.path.join(*fullname.split(".")) + ".abi3.so"
        return super().get_ext_filename(fullname)


setup(
    ext_modules=[Extension("qkernels._C", []), Extension("qkernels._core", [])],
    cmdclass={"build_ext": NinjaBuild},
)
