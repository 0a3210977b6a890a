"""transformers' definitions, from configurations of a few narrow layers."""

from typing import Any

import torch
from torch import Tensor
from zoo_models import images, zoo_model

_TOKENS = 99


def _model(name: str, **settings: Any) -> Any:
    return zoo_model(name, "transformers", **settings)


def _ids(length: int, count: int = 2) -> Tensor:
    return torch.randint(5, _TOKENS, (count, length))


def _text(length: int = 7) -> dict[str, Tensor]:
    """Two texts, the second shorter and padded behind."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -2:] = 0
    return {"input_ids": _ids(length), "attention_mask": mask}


def _prompts(length: int = 7) -> dict[str, Tensor]:
    """Two texts, the second shorter and padded before."""
    text = _text(length)
    return text | {"attention_mask": text["attention_mask"].flip(1)}


@_model("bert")
def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=_TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    return BertForSequenceClassification(config), _text()


@_model("distilbert")
def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(vocab_size=_TOKENS, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    return DistilBertForMaskedLM(config), _text()


@_model("gpt2", programs=None, generates=True)
def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=_TOKENS, n_positions=32, n_embd=32, n_layer=2, n_head=2, **_ENDS)
    return GPT2LMHeadModel(config), _prompts()


@_model("llama", programs=None, generates=True)
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_TOKENS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **_ENDS,
    )  # fmt: skip
    return LlamaForCausalLM(config), _prompts()


_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@_model("vit")
def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=10,
    )  # fmt: skip
    return ViTForImageClassification(config), {"pixel_values": images(32)}


@_model("clip", programs=2)
def clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    config = CLIPConfig(
        text_config=tower | {"vocab_size": _TOKENS, "max_position_embeddings": 16, **_ENDS},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    return CLIPModel(config), {**_text(), "pixel_values": images(32)}


@_model("whisper", programs=None, generates=True)
def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=_TOKENS, num_mel_bins=8, d_model=32, encoder_layers=2, encoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64, max_source_positions=15,
        max_target_positions=20, decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None, **_ENDS,
    )  # fmt: skip
    sound = {"input_features": torch.randn(2, 8, 30), "decoder_input_ids": _ids(5)}
    return WhisperForConditionalGeneration(config), sound


@_model("t5", programs=None, generates=True)
def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=_TOKENS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config), {**_text(), "decoder_input_ids": _ids(5)}
