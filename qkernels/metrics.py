"""Figures that answers are judged by, one set for each meaning of labels, by torchmetrics."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from qkernels.data.task import Labels
from qkernels.utils.extras import require


def metrics(answers: Tensor, labels: Tensor, meaning: Labels) -> tuple[dict[str, float], float]:
    """(name -> value, what the first is worth without learning) of answers [N, K]; the first is the one to compare by.

    multiclass: accuracy, and the means over classes of recall and F1, and the calibration error.
    multilabel: mean average precision, F1 over all labels and the mean over classes, accuracy of a label.
    regression: R2 (the mean over outputs), mean absolute error, and the mean rank correlation (Spearman).

    Labels that say nothing are left out. Raises ImportError where torchmetrics is missing.
    """
    library = require("torchmetrics.functional", "train")
    with warnings.catch_warnings():  # such as of a class that never occurs, which counts as 0
        warnings.simplefilter("ignore", UserWarning)
        found: dict[str, Any] = _TABLES[meaning.task](library, answers.float(), labels, meaning)
    return {name: float(value) for name, value in found.items()}, _unlearned(labels, meaning)


def _of_classes(library: Any, answers: Tensor, labels: Tensor, meaning: Labels) -> dict[str, Any]:
    known = meaning.known(labels)
    probs, truth = answers[known].softmax(1), labels[known]
    how = {"num_classes": answers.shape[1]}
    kinds = library.classification
    return {
        "accuracy": kinds.multiclass_accuracy(probs, truth, average="micro", **how),
        "mean recall": kinds.multiclass_recall(probs, truth, average="macro", **how),
        "mean F1": kinds.multiclass_f1_score(probs, truth, average="macro", **how),
        "calibration error": kinds.multiclass_calibration_error(probs, truth, **how),
    }


def _of_labels(library: Any, answers: Tensor, labels: Tensor, meaning: Labels) -> dict[str, Any]:
    probs, truth = answers.sigmoid(), labels.long()
    how = {"num_labels": answers.shape[1], "ignore_index": meaning.ignore}
    kinds = library.classification
    return {
        "mAP": kinds.multilabel_average_precision(probs, truth, average="macro", **how),
        "F1": kinds.multilabel_f1_score(probs, truth, average="micro", **how),
        "mean F1": kinds.multilabel_f1_score(probs, truth, average="macro", **how),
        "label accuracy": kinds.multilabel_accuracy(probs, truth, average="micro", **how),
    }


def _of_values(library: Any, answers: Tensor, labels: Tensor, meaning: Labels) -> dict[str, Any]:
    truth = labels.float()
    return {
        "R2": library.r2_score(answers, truth),
        "absolute error": library.mean_absolute_error(answers, truth),
        "Spearman": library.spearman_corrcoef(answers, truth).nan_to_num().mean(),
    }


def _unlearned(labels: Tensor, meaning: Labels) -> float:
    """What the first figure is worth for answers that do not look at the input: equally likely classes, the mean."""
    if meaning.task == "regression":
        return 0.0
    known = meaning.known(labels)
    if meaning.task == "multiclass":
        counts = torch.bincount(labels[known])
        return float(counts.max() / counts.sum())
    return float(((labels * known).sum(0) / known.sum(0).clamp(min=1)).mean())


_TABLES = {"multiclass": _of_classes, "multilabel": _of_labels, "regression": _of_values}
