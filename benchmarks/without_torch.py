"""What a process that serves a program costs: time and memory of import, load and first answer, with and without torch.

python benchmarks/without_torch.py MODEL.qkp N,C,H,W
"""

from __future__ import annotations

import subprocess
import sys

MEASURE = """
import resource, sys, time
def now(): return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
import numpy as np
before = now()
{imports}
from qkernels.program import Program
program = Program.load({path!r})
program(np.zeros({size}, np.float32))
after = now()
print(f"{{(after[0] - before[0]) * 1e3:.0f}} ms, {{after[1] - before[1]:.1f}} MB beyond numpy's {{before[1]:.0f}} MB")
"""


def main() -> None:
    path, size = sys.argv[1], tuple(int(n) for n in sys.argv[2].split(","))
    for name, imports in (("numpy only", ""), ("with torch", "import torch")):
        code = MEASURE.format(imports=imports, path=path, size=size)
        for _ in range(2):  # the first fills the file cache
            out = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, check=True, text=True
            )
        print(f"{name}: {out.stdout.strip()}")


if __name__ == "__main__":
    main()
