"""What the tests of several folders share."""

import os
from collections import Counter
from collections.abc import Iterator

# As many tests run at once as there are cores, and tensors are small: more threads would only wait for each other.
# Tests of threads ask for them, and processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from qkernels.data import ImageData, load

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as the tests

# torchvision's wheel asks for two schemas that a CPU build of torch lacks; timm and transformers import it
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}(Tensor a) -> Tensor")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers of a shared run take files of slow tests first and files of few tests last: none is waited for."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        count = Counter(item.path for item in items)
        items.sort(key=lambda item: (item.path not in slow, -count[item.path]))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skips more tests than $QKERNELS_MAX_SKIPS: a check that went missing is not a pass."""
    limit = os.environ.get("QKERNELS_MAX_SKIPS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if limit is None or reporter is None:
        return
    skipped = len(reporter.stats.get("skipped", []))
    if skipped > int(limit):
        reporter.write_line(f"{skipped} tests were skipped, more than the {limit} known: see -rs")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A test leaves as many threads as it found."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    pytest.importorskip("sklearn")
    return load("digits")
