"""Models of transformers as one file: words and a mask in, logits out, from NumPy and without torch, the same bits."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.program import Program

transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 99, 7
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
Call = dict[str, Tensor]


def text(count: int = 3) -> Call:
    mask = torch.ones(count, LENGTH, dtype=torch.long)
    mask[-1, 4:] = 0
    return {"input_ids": torch.randint(5, WORDS, (count, LENGTH)), "attention_mask": mask}


def images(count: int = 3) -> Call:
    return {"pixel_values": torch.randn(count, 3, 32, 32)}


def with_segments(count: int = 3) -> Call:
    return text(count) | {"token_type_ids": torch.randint(0, 2, (count, LENGTH))}


def bert(**more: Any) -> Any:
    return transformers.BertConfig(vocab_size=WORDS, **SIZES, **more)


def classifier() -> nn.Module:
    return transformers.BertForSequenceClassification(bert(num_labels=4))


def with_pooler() -> nn.Module:
    return transformers.BertModel(bert())


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=WORDS, dim=32, n_layers=2, n_heads=2, hidden_dim=64
    )
    return transformers.DistilBertForSequenceClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=10, **SIZES)
    return transformers.ViTForImageClassification(config)


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(vocab_size=WORDS, num_labels=4, **SIZES)
    return transformers.RobertaForSequenceClassification(config)


def mpnet() -> nn.Module:
    return transformers.MPNetModel(transformers.MPNetConfig(vocab_size=WORDS, **SIZES))


def clip_text() -> nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=WORDS, eos_token_id=WORDS - 1, projection_dim=16, **SIZES
    )
    return transformers.CLIPTextModelWithProjection(config)


def padded_before(count: int = 3) -> Call:
    call = text(count)
    return {**call, "attention_mask": call["attention_mask"].flip(1)} | {"use_cache": False}  # type: ignore[dict-item]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=32, n_embd=32, n_layer=2, n_head=2
    )
    return transformers.GPT2LMHeadModel(config)


def gpt2_classifier() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=32, n_embd=32, n_layer=2, n_head=2, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def t5_encoder() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    return transformers.T5EncoderModel(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def two_texts(count: int = 3) -> Call:
    answer = torch.randint(5, WORDS, (count, 5))
    return {**text(count), "decoder_input_ids": answer} | {"use_cache": False}  # type: ignore[dict-item]


def siglip() -> nn.Module:
    config = transformers.SiglipVisionConfig(image_size=32, patch_size=8, **SIZES)
    return transformers.SiglipVisionModel(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Call]]] = {
    "BERT with a classifier": (classifier, text),
    "BERT with a pooler": (with_pooler, text),
    "BERT with segments": (with_pooler, with_segments),
    "DistilBERT": (distilbert, text),
    "RoBERTa with a classifier": (roberta, text),
    "MPNet": (mpnet, text),
    "CLIP's text tower": (clip_text, text),
    "ViT": (vit, images),
    "GPT-2": (gpt2, padded_before),
    "GPT-2 with a classifier": (gpt2_classifier, padded_before),
    "Llama": (llama, padded_before),
    "T5's encoder": (t5_encoder, text),
    "T5": (t5, two_texts),
    "SigLIP's vision tower": (siglip, images),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_is_one_file_that_numpy_runs_with_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model, call = make().eval(), inputs()
    int8 = qk.quantize(model, "static", [call])
    fast = qk.compile(int8, call)
    assert fast.report.unfused == []
    assert min(fast.report.sqnr_db.values()) > 20
    fast.save(tmp_path / "model.qkp")
    program = Program.load(tmp_path / "model.qkp")
    for count in (1, 2):
        call = inputs(count)
        expected = list(fast(**call).values())
        answer = program(*(x.numpy() for x in call.values() if isinstance(x, Tensor)))
        answers = answer if isinstance(answer, list) else [answer]
        for got, wanted in zip(answers, expected, strict=True):
            assert np.array_equal(got, wanted.numpy())
        layers = list(int8(**call).values())
        for got, wanted in zip(expected, layers, strict=True):
            assert (got - wanted).norm() < 0.1 * wanted.norm()


@pytest.fixture(scope="module")
def compiled() -> tuple[Any, Call]:
    torch.manual_seed(0)
    call = text()
    return qk.compile(qk.quantize(classifier().eval(), "static", [call]), call), call


def test_a_text_model_runs_in_a_process_that_never_loads_torch(
    compiled: tuple[Any, Call], tmp_path: Path
) -> None:
    fast, call = compiled
    fast.save(tmp_path / "model.qkp")
    np.savez(tmp_path / "call.npz", **{k: v.numpy() for k, v in call.items()})
    lines = (
        "import sys, numpy as np",
        "from qkernels.program import Program",
        f"call = np.load({str(tmp_path / 'call.npz')!r})",
        f"y = Program.load({str(tmp_path / 'model.qkp')!r})(call['input_ids'], call['attention_mask'])",
        f"np.save({str(tmp_path / 'y.npy')!r}, y)",
        "assert 'torch' not in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    assert np.array_equal(np.load(tmp_path / "y.npy"), fast(**call).logits.numpy())


def test_another_length_than_the_examples_is_refused_in_one_sentence(
    compiled: tuple[Any, Call],
) -> None:
    fast, call = compiled
    with pytest.raises(ValueError, match="the model was made for a size of 7 in dimension 1"):
        fast(**{name: x[:, :5] for name, x in call.items()})


def test_an_answer_with_a_cache_leaves_parts_and_says_what_to_pass() -> None:
    torch.manual_seed(0)
    call = text()
    int8 = qk.quantize(llama().eval(), "dynamic")
    report = qk.compile(int8, call).report
    assert re.search(r"answers with a DynamicCache.*pass use_cache=False", report.uncaptured)
    assert re.search(r"compiled are its parts .*mlp", report.uncaptured)
