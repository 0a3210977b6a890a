"""What runs in a process that never loads torch."""

import subprocess
import sys
import textwrap

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


def test_what_several_parts_share_needs_no_torch() -> None:
    script = """
        import importlib, pkgutil, sys
        import qkernels.utils
        for found in pkgutil.iter_modules(qkernels.utils.__path__, "qkernels.utils."):
            importlib.import_module(found.name)
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
