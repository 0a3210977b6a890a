"""Multi-head attention whose four products are linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkernels.plain.form import PlainForm, fill, shared_parameter, spend_weight_hooks


class JoinedWeight(Tensor):
    """A plain tensor in every operation, which torch's fused attention kernels refuse.

    ``nn.TransformerEncoder`` and its layers hand ``in_proj_weight`` to one fused float kernel, past the linear layers,
    unless a weight overrides ``__torch_function__``.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class PlainAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` as ``nn.Linear``.

    Arguments, results and masks are those of ``nn.MultiheadAttention`` outside its fast path; scores and weighted sums
    stay float. ``in_proj_weight``, ``in_proj_bias`` and ``q_proj_weight`` and its like are read from the linear layers
    at each access. ``_qkv_same_embed_dim`` is False, since the projections are separate here: torch's encoder layer
    then calls this module and never its own fused kernel.

    Unlike there, ``num_heads * head_dim`` need not be the width of queries (``embed_dim``), nor that the width of the
    output (``out_dim``): attention that lost heads or channels has fewer.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        head_dim: int | None = None,
        out_dim: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        width = self.num_heads * self.head_dim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self._qkv_same_embed_dim = False
        self.q_proj = nn.Linear(embed_dim, width, bias, device, dtype)
        self.k_proj = nn.Linear(embed_dim if kdim is None else kdim, width, bias, device, dtype)
        self.v_proj = nn.Linear(embed_dim if vdim is None else vdim, width, bias, device, dtype)
        out = embed_dim if out_dim is None else out_dim
        self.out_proj = nn.Linear(width, out, bias, device, dtype)  # type: ignore[assignment]
        for name in ("bias_k", "bias_v"):
            empty = torch.zeros((1, 1, width), device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty) if add_bias_kv else None)

    # ---- building

    @classmethod
    def from_float(cls, attention: nn.MultiheadAttention) -> PlainAttention:
        """The plain form, which shares the parameters of ``attention`` (also those on the meta device)."""
        fused = attention.in_proj_weight
        new = cls(
            attention.embed_dim,
            attention.num_heads,
            attention.dropout,
            attention.in_proj_bias is not None,
            attention.bias_k is not None,
            attention.add_zero_attn,
            attention.kdim,
            attention.vdim,
            attention.batch_first,
            device="meta",
        )
        weights = (
            (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            if fused is None
            else fused.chunk(3)
        )
        joined = attention.in_proj_bias
        biases = (None, None, None) if joined is None else joined.chunk(3)
        for layer, weight, bias in zip(
            (new.q_proj, new.k_proj, new.v_proj), weights, biases, strict=True
        ):
            fill(layer, weight, bias)
        fill(new.out_proj, attention.out_proj.weight, attention.out_proj.bias)
        if attention.bias_k is not None and attention.bias_v is not None:
            new.bias_k, new.bias_v = (
                shared_parameter(attention.bias_k),
                shared_parameter(attention.bias_v),
            )
        return new.train(attention.training)

    def scheme(self) -> dict[str, Any]:
        """What ``from_scheme`` needs to build this module without its tensors; JSON-able."""
        return {
            "kind": "PlainAttention",
            "embed_dim": self.embed_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "bias": self.q_proj.bias is not None,
            "add_bias_kv": self.bias_k is not None,
            "add_zero_attn": self.add_zero_attn,
            "kdim": self.kdim,
            "vdim": self.vdim,
            "batch_first": self.batch_first,
            "head_dim": self.head_dim,
            "out_dim": self.out_proj.out_features,
        }

    @classmethod
    def from_scheme(cls, scheme: dict[str, Any]) -> PlainAttention:
        """An empty module of this scheme; built under ``torch.device("meta")`` too."""
        return cls(**{k: v for k, v in scheme.items() if k != "kind"})

    # ---- what nn.MultiheadAttention holds as attributes and parameters

    @property
    def embed_dim(self) -> int:
        """The width of queries."""
        return self.q_proj.in_features

    @property
    def kdim(self) -> int:
        """The width of keys."""
        return self.k_proj.in_features

    @property
    def vdim(self) -> int:
        """The width of values."""
        return self.v_proj.in_features

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """[3 * num_heads * head_dim, embed_dim], or None where keys or values have another width."""
        if not self.kdim == self.vdim == self.embed_dim:
            return None
        return _joined([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """[3 * num_heads * head_dim], or None."""
        biases = [layer.bias for layer in (self.q_proj, self.k_proj, self.v_proj)]
        return None if biases[0] is None else _joined(biases)

    @property
    def q_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The weight of the projection to queries."""
        return self.q_proj.weight

    @property
    def k_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The weight of the projection to keys."""
        return self.k_proj.weight

    @property
    def v_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The weight of the projection to values."""
        return self.v_proj.weight

    # ---- forward

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Answer as ``nn.MultiheadAttention.forward`` does: (output, attention weights or None)."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise AssertionError("PlainAttention takes no NestedTensor: give a key_padding_mask")
        batched = F._mha_shape_check(  # type: ignore[attr-defined]
            query, key, value, key_padding_mask, attn_mask, self.num_heads
        )
        if not batched:
            dim = 0 if self.batch_first else 1
            query, key, value = (x.unsqueeze(dim) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        if key.shape[:2] != value.shape[:2]:
            raise AssertionError(
                f"key's sequence and batch dims {key.shape[:2]} do not match value's {value.shape[:2]}"
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: give the mask itself too")
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(query, key, attn_mask, key_padding_mask)
        output, weights = self._attend(query, key, value, mask, causal, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return output, weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        q = self._heads(self.q_proj(query))
        k = self._heads(self._with_bias(self.k_proj(key), self.bias_k))
        v = self._heads(self._with_bias(self.v_proj(value), self.bias_v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
        return self.out_proj(y.flatten(2)), weights

    def _heads(self, x: Tensor) -> Tensor:
        """[N, T, E], or [T, N, E] without ``batch_first``, to [N, heads, T, E / heads]."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The sequence with one learned element more at its end."""
        if bias is None:
            return x
        sequence, batch = (1, 0) if self.batch_first else (0, 1)
        size = [1, 1, bias.shape[-1]]
        size[batch] = x.shape[batch]
        return torch.cat([x, bias.to(x.dtype).expand(size)], sequence)

    def _mask(
        self, query: Tensor, key: Tensor, attn_mask: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """Both masks as one that is added to the scores [N, heads, T, S]."""
        padding = F._canonical_mask(
            mask=padding,
            mask_name="key_padding_mask",
            other_type=F._none_or_dtype(attn_mask),
            other_name="attn_mask",
            target_type=query.dtype,
        )
        mask = F._canonical_mask(
            mask=attn_mask,
            mask_name="attn_mask",
            other_type=None,
            other_name="",
            target_type=query.dtype,
            check_other=False,
        )
        batch, sequence = (0, 1) if self.batch_first else (1, 0)
        n, t, s = query.shape[batch], query.shape[sequence], key.shape[sequence]
        more = (self.bias_k is not None) + self.add_zero_attn  # elements that no mask hides
        if mask is not None:
            right = (t, s) if mask.dim() == 2 else (n * self.num_heads, t, s)
            if tuple(mask.shape) != right:
                raise RuntimeError(f"attn_mask is {list(mask.shape)}, but should be {list(right)}")
            mask = F.pad(mask if mask.dim() == 2 else mask.view(n, -1, t, s), (0, more))
        if padding is None:
            return mask
        if tuple(padding.shape) != (n, s):
            raise RuntimeError(f"key_padding_mask is {list(padding.shape)}, but should be {[n, s]}")
        padding = F.pad(padding, (0, more))[:, None, None, :]
        return padding if mask is None else mask + padding

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    joined = torch.cat(list(tensors))
    traced = torch.compiler.is_dynamo_compiling() or type(joined) is not Tensor
    return joined if traced else joined.as_subclass(JoinedWeight)


def plain_attention(attention: nn.MultiheadAttention) -> PlainForm:
    """Four linear layers, with the function of the module."""
    widths = (attention.embed_dim, attention.kdim, attention.vdim)
    spent = spend_weight_hooks(attention, tuple(torch.zeros(1, 1, width) for width in widths))
    new = PlainAttention.from_float(attention)
    return PlainForm(new, "multi-head attention as four linear layers", spent)
