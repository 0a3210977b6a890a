"""The workflows of the forge, which cannot run here: what they call is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def commands(path: Path) -> Iterator[str]:
    """The shell lines of a workflow's steps."""
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        for step in job.get("steps", []):
            yield from step.get("run", "").splitlines()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there(path: Path) -> None:
    missing = []
    for command in commands(path):
        words = re.findall(r"(?<![\w/.-])(?:\.ci|tests|docs|benchmarks)/[\w/.-]+", command)
        missing += [word for word in words if not (ROOT / word).exists()]
        if target := re.match(r"make (\w+)", command):
            dry = ["make", "--dry-run", target[1]]
            done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
            missing += [] if done.returncode == 0 else [done.stderr]
    assert not missing


def test_there_is_a_command_in_the_workflows() -> None:
    assert len(WORKFLOWS) == 5 and sum(len(list(commands(path))) for path in WORKFLOWS) > 5


def test_no_checkout_leaves_a_token_behind() -> None:
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job.get("steps", []):
                if step.get("uses", "").startswith("actions/checkout"):
                    assert step["with"]["persist-credentials"] is False, path.name
