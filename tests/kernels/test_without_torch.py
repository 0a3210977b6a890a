"""qkernels._core in a process that never loads torch."""

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
from qkernels import _core

weight = np.arange(-60, 60, dtype=np.int8).reshape(5, 24)
x = np.ones((3, 24), np.float32)
scale = np.full(5, 0.5, np.float32)
y = _core.linear(x, _core.pack_weight(weight), scale)
assert np.allclose(y, x @ weight.T * 0.5, rtol=1e-5)
assert "torch" not in sys.modules
"""


def test_the_numpy_kernels_need_no_torch() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)
