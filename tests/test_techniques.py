"""The table of techniques: its rows, what is kept of them, and the document made from it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from qkernels.data import ImageData
from qkernels.data import load as load_data

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from techniques import experiment, results, table  # noqa: E402
from techniques.elsewhere import POINTERS  # noqa: E402
from techniques.row import Outcome, Row, Setting  # noqa: E402

ALL_ROWS = [row for rows in experiment.sections().values() for row in rows]


def plan(folder: Path, seeds: int = 1, epochs: int = 1) -> experiment.Plan:
    return experiment.Plan(folder / "run", epochs, seeds, 64, "resnet20", "resnet8", 1)


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> ImageData:
    """The digits in place of CIFAR-10, and untrained models in place of the trained ones."""
    whole = load_data("digits")
    parts = {name: whole.split(name).head(64) for name in ("train", "val", "test")}
    data = replace(whole, **parts)

    def net() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        return model.eval()

    class Settings:
        def __init__(self, plan: experiment.Plan) -> None:
            self.plan = plan

        def of(self, seed: int) -> Setting:
            return Setting(data, net(), net, net(), self.plan.epochs, self.plan.run, seed)

    monkeypatch.setattr(experiment, "_Settings", Settings)
    return data


def with_rows(monkeypatch: pytest.MonkeyPatch, **runs: object) -> None:
    where = ("qkernels/distill/losses.py", "tests/test_techniques.py", "README.md")
    rows = [Row(name.replace("_", " "), ("S9-9",), *where, run) for name, run in runs.items()]  # type: ignore[arg-type]
    monkeypatch.setattr(experiment, "sections", lambda: {"A heading": rows})


def train_one(setting: Setting) -> Outcome:
    model = setting.fit(setting.student())
    return Outcome(model, setting.int8(model), "a | note", {"share": 0.5})


def test_every_row_links_to_what_exists() -> None:
    for row in (*ALL_ROWS, *POINTERS):
        for path in (row.code, row.test, row.example):
            assert (ROOT / path).is_file(), f"{row.name}: {path}"
        assert row.technique and all(re.fullmatch(r"S\d-\d+", one) for one in row.technique), row


def test_nothing_that_the_tutorials_list_is_missing() -> None:
    lengths = {0: 9, 1: 10, 2: 15, 3: 18, 4: 6}  # rows of each tutorial
    asked = {f"S{t}-{i}" for t, count in lengths.items() for i in range(1, count + 1)}
    assert {one for row in (*ALL_ROWS, *POINTERS) for one in row.technique} == asked


def test_every_row_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = [experiment.result_path(plan(tmp_path), row, 0) for row in ALL_ROWS]
    assert len(set(paths)) == len(paths) > 10
    assert next(iter(experiment.sections())) == "Where the others start from"


def test_a_row_is_run_once_and_a_failed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: ImageData
) -> None:
    calls = []

    def good(setting: Setting) -> Outcome:
        calls.append("good")
        return train_one(setting)

    def bad(setting: Setting) -> Outcome:
        calls.append("bad")
        raise ValueError("no such thing\nat all")

    with_rows(monkeypatch, good=good, bad=bad)
    for _ in range(2):
        experiment.run(plan(tmp_path))
    assert calls == ["good", "bad", "bad"]
    experiment.run(plan(tmp_path), only="goo")
    assert len(calls) == 3
    failed = results.load(tmp_path / "run/seed0/bad.json")
    assert failed is not None and failed.error == "ValueError: no such thing at all"


def test_a_killed_row_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: ImageData
) -> None:
    def killed(setting: Setting) -> Outcome:
        setting.fit(setting.student())
        raise KeyboardInterrupt

    def lr_seen(setting: Setting) -> Outcome:
        model = setting.fit(setting.student(), after_step=lambda model, lr: rates.append(lr))
        return Outcome(model, None)

    rates: list[float] = []
    with_rows(monkeypatch, row=killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(plan(tmp_path))
    assert results.load(tmp_path / "run/seed0/row.json") is None
    with_rows(monkeypatch, row=lr_seen)
    experiment.run(plan(tmp_path))
    assert not rates  # the training was finished and only read
    assert results.load(tmp_path / "run/seed0/row.json") is not None


def test_another_plan_needs_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: ImageData
) -> None:
    with_rows(monkeypatch, row=train_one)
    experiment.run(plan(tmp_path))
    experiment.run(plan(tmp_path, seeds=2))
    assert (tmp_path / "run/seed1/row.json").exists()
    with pytest.raises(ValueError, match="epochs=1, not 2"):
        experiment.run(plan(tmp_path, epochs=2))


def test_what_is_measured_is_that_of_the_models(tmp_path: Path, digits: ImageData) -> None:
    setting = Setting(digits, nn.Flatten(), nn.Flatten, nn.Flatten(), 1, tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    setting = replace(setting, alone=net)
    found = results.measure(Outcome(net, setting.int8(net)), setting)
    exact, int8 = found["float_model"], found["int8_model"]
    assert exact is not None and int8 is not None
    assert exact.gain == 0 and exact.bytes == 4 * 650
    assert int8.bytes < 0.5 * exact.bytes
    assert int8.gain == pytest.approx(int8.accuracy - exact.accuracy)
    only = results.measure(Outcome(None, setting.int8(net)), setting)
    assert only["float_model"] is None and only["int8_model"] is not None
    with pytest.raises(ValueError, match="no model to measure"):
        results.measure(Outcome(None, None), setting)


def test_the_document_has_every_result_and_every_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: ImageData
) -> None:
    def fails_later(setting: Setting) -> Outcome:
        if setting.seed:
            raise ValueError("a | bar")
        return train_one(setting)

    def fails(setting: Setting) -> Outcome:
        raise ValueError("a | bar")

    with_rows(monkeypatch, good_row=train_one, half=fails_later, bad=fails)
    two = plan(tmp_path, seeds=2)
    experiment.run(two)
    out = tmp_path / "docs" / "techniques.md"
    table.write(two, out, "the command")
    text = out.read_text()
    lines = [line for line in text.partition("## Not a row")[0].splitlines() if line[:1] == "|"]
    assert len({line.count("|") for line in lines}) == 1, "every line has every column"
    by_name = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert "±" in by_name["good row"] and "a / note; share 50.0%" in by_name["good row"]
    assert "1 of 2 seeds failed: ValueError: a / bar" in by_name["half"]
    assert "**failed**: ValueError: a / bar" in by_name["bad"]
    assert "generated by: the command" in text and "Not run yet" not in text
    table.write(plan(tmp_path), out, "the command")
    assert re.search(r"\d\d\.\d\d \[\d+\.\d, \d+\.\d\]", out.read_text())
