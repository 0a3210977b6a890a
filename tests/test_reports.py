"""What a step did hangs on the model that it returns."""

import copy
import importlib
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import prune, recovery
from qkernels.quantization import Folds, Mixed, fold_batch_norm_, mix
from qkernels.reports import forget, hang, reports_of


@dataclass
class Seen:
    text: str


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    return nn.Sequential(*layers).eval()


def data() -> torch.Tensor:
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(1))


def test_the_newest_report_answers_and_a_kind_finds_an_older_one() -> None:
    model = hang(hang(net(), Seen("first")), Seen("second"))
    model = hang(model, "a sentence")
    assert qk.report(model) == "a sentence"
    assert qk.report(model, Seen) == Seen("second")
    assert reports_of(model) == [Seen("first"), Seen("second"), "a sentence"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_keep_reports_of_their_own(copied) -> None:
    model = hang(net(), Seen("first"))
    other = copied(model)
    hang(other, Seen("second"))
    assert qk.report(other) == Seen("second") and qk.report(model) == Seen("first")
    assert qk.report(hang(copy.copy(model), Seen("third"))) == Seen("third")
    assert qk.report(model) == Seen("first")


def test_reports_are_no_part_of_the_state_dict() -> None:
    model = net()
    before = list(model.state_dict())
    assert list(hang(model, Seen("first")).state_dict()) == before
    assert list(forget(model).state_dict()) == before and reports_of(model) == []


def test_a_model_without_the_report_asked_for_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="Sequential has no report: it hangs on the model that"):
        qk.report(net())
    with pytest.raises(ValueError, match="Sequential has no Seen: its reports are Folds"):
        qk.report(fold_batch_norm_(net()), Seen)


def test_every_step_hangs_its_report_on_the_model_it_returns() -> None:
    x = data()
    equal = recovery.equalize(net())
    smoothed = recovery.smooth(equal, x)
    clipped = recovery.clip_outliers(smoothed)
    int8 = qk.quantize(clipped, calibration=x)
    assert recovery.round_weights_(int8, clipped, x) is int8
    assert recovery.correct_bias_(int8, clipped, x) is int8
    kinds = [type(found) for found in reports_of(int8)]
    steps = [recovery.Equalized, recovery.Smoothed, recovery.Clipped, qk.QuantReport]
    steps += [recovery.Rounded, recovery.Corrected]
    assert [kind for kind in kinds if kind is not Folds] == steps
    assert all(str(qk.report(int8, kind)) for kind in steps)
    assert type(qk.report(clipped)) is recovery.Clipped  # the model that was given has no more
    chained = qk.compile(int8, x, exact=True)
    assert qk.report(chained) is chained.report and chained.report.layers
    assert qk.report(mix(net(), calibration=x, floor=1.0), Mixed).met


def test_pruning_adds_to_the_reports_of_the_model_it_was_given() -> None:
    pytest.importorskip("torch_pruning")
    model = hang(net(), Seen("first"))
    scores = prune.magnitude(prune.weights(model))
    smaller = prune.prune_channels(model, data()[:1], scores, amount=0.5)
    assert reports_of(smaller) == [Seen("first"), qk.report(smaller, prune.ChannelReport)]
    assert reports_of(model) == [Seen("first")]


def test_report_is_the_function_whatever_module_was_imported() -> None:
    for module in (
        "qkernels.reports",
        "qkernels.pipeline.html_report",
        "qkernels.quantization.report",
    ):
        importlib.import_module(module)
        assert callable(qk.report) and "report" in qk.__all__
