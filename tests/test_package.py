"""What a stranger gets: the source distribution, a wheel made of it, and a command with base dependencies alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"


def said_by_build(what: str, source: Path, into: Path, **variables: str) -> str:
    """What the build backend prints while it puts one file into `into`, called as pip and build call it."""
    environment = {**os.environ, "QKERNELS_CUDA": "0", "CXXFLAGS": "-O1", **variables}
    command = [sys.executable, "-c", BUILD, what, str(into)]
    return subprocess.run(
        command, cwd=source, env=environment, check=True, capture_output=True, text=True
    ).stdout


def build(what: str, source: Path, into: Path, **variables: str) -> Path:
    said_by_build(what, source, into, **variables)
    (made,) = into.iterdir()
    return made


def unpacked(sdist: Path, into: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    return into / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def test_the_source_distribution_has_every_file_that_it_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    needed = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    needed += [p for p in (ROOT / "qkernels").rglob("*") if p.suffix in (".py", ".pyi", ".html")]
    needed += [ROOT / name for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE")]
    assert len(needed) > 300
    assert {str(p.relative_to(ROOT)) for p in needed} <= there
    assert not [name for name in there if name.endswith((".so", ".o"))]


@pytest.mark.slow
def test_a_wheel_of_the_source_distribution_runs_a_layer_in_a_clean_environment(
    sdist: Path, tmp_path: Path
) -> None:
    source = unpacked(sdist, tmp_path)
    wheel = build("wheel", source, tmp_path / "dist")
    said = said_by_build("editable", source, tmp_path / "editable")
    assert "-shared" in said and " -c " not in said, "another installation compiles anew"
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean/bin/python"
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel]
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(install, check=True, env=plain)
    (site,) = (tmp_path / "clean/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))  # and the others
    code = """
        import torch, qkernels as qk
        x, layer = torch.randn(3, 8), torch.nn.Linear(8, 4)
        int8 = qk.quantize(torch.nn.Sequential(layer), "static", [x])
        assert (int8(x) - layer(x)).abs().max() < 0.1
        assert torch.equal(qk.compile(int8, x, exact=True)(x), int8(x))
        print(qk.__file__)
    """
    run = [python, "-c", textwrap.dedent(code)]
    said = subprocess.run(
        run, cwd=tmp_path, env=plain, check=True, capture_output=True, text=True
    ).stdout
    assert said.startswith(str(site))
    command = [tmp_path / "clean/bin/qkernels", "--version"]
    said = subprocess.run(command, env=plain, check=True, capture_output=True, text=True).stdout
    assert said == f"qkernels {metadata.version('qkernels')}\n"


# The cross compiler, to which every source is empty: flags, names and links are asked for; tests/native has the code.
HASTY = """#!/bin/bash
exec aarch64-linux-gnu-g++ "${@/%*.cpp/$EMPTY}"
"""
AARCH64 = 183  # of ELF's e_machine


def test_a_wheel_for_aarch64_has_that_machines_modules_names_and_kernels(
    sdist: Path, tmp_path: Path
) -> None:
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("aarch64-linux-gnu-g++ is not installed (Debian: g++-aarch64-linux-gnu)")
    compiler, empty = tmp_path / "g++", tmp_path / "empty.cpp"
    compiler.write_text(HASTY)
    compiler.chmod(0o755)
    empty.touch()
    torch_lib = tmp_path / "site/torch/lib"  # libtorch.so itself is empty: others have its symbols
    torch_lib.mkdir(parents=True)
    (torch_lib.parent / "__init__.py").touch()
    library = ["aarch64-linux-gnu-g++", "-shared", empty, "-o", torch_lib / "libtorch.so"]
    subprocess.run(library, check=True)

    source = unpacked(sdist, tmp_path)
    suffix = f".{sys.implementation.cache_tag}-aarch64-linux-gnu.so"
    wheel = build(
        "wheel",
        source,
        tmp_path / "dist",
        PYTHONPATH=str(tmp_path / "site"),
        CXX=str(compiler),
        EMPTY=str(empty),
        _PYTHON_HOST_PLATFORM="linux-aarch64",
        SETUPTOOLS_EXT_SUFFIX=suffix,
    )
    assert wheel.name.endswith("-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        modules = {n: archive.read(n) for n in archive.namelist() if n.endswith(".so")}
    assert set(modules) == {"qkernels/_C.abi3.so", f"qkernels/_core{suffix}"}
    assert {int.from_bytes(m[18:20], "little") for m in modules.values()} == {AARCH64}
    kernels = {path.name for path in (source / "build").rglob("kernels/*.o")}
    assert any("_neondot" in name for name in kernels)
    assert not any("_avx2" in name for name in kernels)


def base_distributions() -> list[metadata.Distribution]:
    """What `pip install qkernels` brings, extras left out."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [_normal(r) for r in metadata.requires("qkernels") or [] if "extra ==" not in r]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # its marker is not of this machine
            continue
        waiting += [_normal(r) for r in found[name].requires or [] if "extra ==" not in r]
    return list(found.values())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site-packages with the base dependencies alone, by links."""
    site = tmp_path_factory.mktemp("base")
    for distribution in base_distributions():
        tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    (site / "qkernels").symlink_to(ROOT / "qkernels")
    return site


def _normal(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, "qkernels "),
        (["--help"], 0, "pipeline"),
        (["info"], 0, "in use"),
        (["pipeline"], 2, 'pip install "qkernels[train]"'),
        (["serve", "x.qkp"], 2, 'pip install "qkernels[serve]"'),
        (["bench", "--only", "nope"], 2, "'nope'"),
    ],
)
def test_a_command_works_with_base_dependencies_or_names_its_extra(
    words: list[str], code: int, said: str, base: Path, tmp_path: Path
) -> None:
    assert not {"sklearn", "accelerate", "uvicorn"} & {path.name for path in base.iterdir()}
    command = [sys.executable, "-S", "-m", "qkernels", *words]  # -S: no other site-packages
    environment = {**os.environ, "PYTHONPATH": str(base)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    if code:
        assert done.stderr.count("\n") == 1, "one sentence"


@pytest.mark.slow
def test_the_stub_of_the_kernels_is_what_the_module_has(tmp_path: Path) -> None:
    metaclass = tmp_path / "allowed"
    metaclass.write_text("qkernels._core.Program\n")  # of pybind11
    command = [sys.executable, "-m", "mypy.stubtest", "qkernels._core", "--allowlist", metaclass]
    done = subprocess.run(
        [*command, "--mypy-config-file", ROOT / "pyproject.toml"], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
