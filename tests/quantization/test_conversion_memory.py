"""Peak memory of converting and loading, each measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PRELUDE = """
import sys, torch
import torch.fx, safetensors.torch
from torch import nn
import qkernels.quantization as qq
torch.set_num_threads(1)

def make():
    return nn.Sequential(*(nn.Linear(1536, 1536) for _ in range(12)))

def memory(field):  # in bytes; getrusage would count the parent before exec
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

qq.quantize(nn.Linear(8, 8), None, torch.randn(2, 8))  # first-call allocations
size = 12 * 4 * 1536 * 1537
"""


def measured(script: str, *arguments: str) -> list[float]:
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},  # what is freed goes back at once
    )
    return [float(word) for word in run.stdout.split()]


def test_in_place_conversion_peaks_below_one_and_a_third_models(tmp_path: Path) -> None:
    peak, after = measured(
        """
before = memory("VmRSS")
model = make()
model = qq.quantize_(model, None, torch.randn(4, 1536))
print((memory("VmHWM") - before) / size, (memory("VmRSS") - before) / size)
qq.save(model, sys.argv[1])
""",
        str(tmp_path / "model.safetensors"),
    )
    assert peak < 1.3
    assert after < 0.5
    (loading,) = measured(
        """
before = memory("VmRSS")
model = qq.load(sys.argv[1], make)
print((memory("VmHWM") - before) / size)
""",
        str(tmp_path / "model.safetensors"),
    )
    assert loading < 0.6  # the mapped file and the packed weights
