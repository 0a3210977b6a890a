"""How many processor cores this process may use. Nothing here needs torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that affinity and the CPU quota of the control groups allow, at least 1; ``root`` has proc and sys."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.floor(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The limits, in cores, of this process's group and of those around it, in version 2 and 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        inside = base / group.strip("/")
        for folder in (inside, *(p for p in inside.parents if p.is_relative_to(base))):
            quota, _, period = _read(folder / "cpu.max").partition(" ")
            if not period:
                quota = _read(folder / "cpu.cfs_quota_us")
                period = _read(folder / "cpu.cfs_period_us")
            if quota.strip() not in ("", "max", "-1"):
                yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
