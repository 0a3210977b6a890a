"""What loaders yield, and how a model is called with it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import qkernels as qk
from qkernels.modules.calling import BatchReader, Call, example_call
from qkernels.quantization import calibrate
from qkernels.quantization.observers import MinMax

N = 8
U, V = (torch.randn(N, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
Y = torch.arange(N) % 3
IDS = torch.randint(1, 20, (N, 5), generator=torch.Generator().manual_seed(2))
MASK = torch.ones_like(IDS)


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Two(One):
    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.fc(u * v)


class Optional(One):
    """The second argument may be a tensor that changes the answer."""

    def forward(self, u: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.fc(u if scale is None else u * scale)


class Text(One):
    """As transformers' models: keyword arguments, labels among them or not."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        if more:
            self.forward = None  # type: ignore[assignment]
            del self.forward

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        assert attention_mask is None or attention_mask.shape == input_ids.shape
        return {"logits": self.fc(self.table(input_ids).mean(1))}


class Labelled(Text):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **more):  # type: ignore[no-untyped-def, override]
        logits = self.fc(self.table(input_ids).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Images(One):
    """As torchvision's detectors: a list of images of different sizes."""

    def forward(self, images: list[Tensor], targets: Any = None) -> Tensor:
        assert isinstance(images, list)
        return self.fc(torch.stack([image.mean((1, 2)) for image in images]).repeat(1, 2)[:, :4])


class Sample(One):
    """A forward that takes its whole batch as one dict."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.fc(batch["u"] + batch["v"])


class Variable(One):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.fc(sum(inputs))  # type: ignore[arg-type]


class Rows(Dataset):
    def __init__(self, sample: Callable[[int], Any]) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return self.sample(i)


class Encoding(collections.UserDict):
    """As transformers' BatchEncoding: a mapping that is no dict, with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


class Pair(NamedTuple):
    u: Tensor
    v: Tensor


def loader(sample: Callable[[int], Any], **more: Any) -> Any:
    return DataLoader(Rows(sample), batch_size=3, **more)


def generator(make: Callable[[slice], Any]) -> Iterator[Any]:
    for i in range(0, N, 3):
        yield make(slice(i, i + 3))


IMAGE = [torch.rand(2, 4 + i % 3, 5) for i in range(N)]
# what the layer must see: the input of `fc`, all batches together
PRODUCT = U * V
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Tensor]] = {
    "x": (One, lambda: loader(lambda i: U[i]), U),
    "(x,)": (One, lambda: DataLoader(TensorDataset(U), batch_size=3), U),
    "(x, y)": (One, lambda: DataLoader(TensorDataset(U, Y), batch_size=3), U),
    "(x, y, weight)": (One, lambda: DataLoader(TensorDataset(U, Y, Y), batch_size=3), U),
    "(x, int)": (One, lambda: loader(lambda i: (U[i], i % 3)), U),
    "(x, dict)": (One, lambda: loader(lambda i: (U[i], {"label": i, "name": str(i)})), U),
    "(x, str)": (One, lambda: loader(lambda i: (U[i], str(i))), U),
    "(u, v)": (Two, lambda: DataLoader(TensorDataset(U, V), batch_size=3), PRODUCT),
    "(u, v, y)": (Two, lambda: DataLoader(TensorDataset(U, V, Y), batch_size=3), PRODUCT),
    "((u, v), y)": (Two, lambda: loader(lambda i: ((U[i], V[i]), i % 3)), PRODUCT),
    "[[u, v], y]": (Two, lambda: loader(lambda i: [[U[i], V[i]], Y[i]]), PRODUCT),
    "named pair": (Two, lambda: loader(lambda i: Pair(U[i], V[i])), PRODUCT),
    "(named pair, y)": (Two, lambda: loader(lambda i: (Pair(U[i], V[i]), i)), PRODUCT),
    "{u, v}": (Two, lambda: loader(lambda i: {"u": U[i], "v": V[i]}), PRODUCT),
    "{u, v, label}": (Two, lambda: loader(lambda i: {"label": i, "v": V[i], "u": U[i]}), PRODUCT),
    "({u, v}, y)": (Two, lambda: loader(lambda i: ({"u": U[i], "v": V[i]}, i)), PRODUCT),
    "(x, y) to an optional argument": (Optional, lambda: DataLoader(TensorDataset(U, Y), batch_size=3), U),
    "((u, v), y) to an optional argument": (Optional, lambda: loader(lambda i: ((U[i], V[i]), i)), PRODUCT),
    "generator of x": (One, lambda: generator(lambda s: U[s]), U),
    "generator of (x, y)": (One, lambda: generator(lambda s: (U[s], Y[s])), U),
    "generator of ((u, v), y)": (Two, lambda: generator(lambda s: ((U[s], V[s]), Y[s])), PRODUCT),
    "list of (u, v)": (Two, lambda: [(U[:3], V[:3]), (U[3:], V[3:])], PRODUCT),
    "callable": (One, lambda: lambda m: [m(x) for x in U.split(3)], U),
    "callable with keywords": (Two, lambda: lambda m: [m(u=U[:3], v=V[:3]), m(U[3:], v=V[3:])], PRODUCT),
    "dict to a forward of one dict": (Sample, lambda: loader(lambda i: {"u": U[i], "v": V[i]}), U + V),
    "tensors to *inputs": (Variable, lambda: loader(lambda i: ((U[i], V[i]), i)), U + V),
    "zip of two loaders": (Two, lambda: zip(U.split(3), V.split(3), strict=True), PRODUCT),
    "map": (One, lambda: map(torch.Tensor.contiguous, U.split(3)), U),
}  # fmt: skip


def seen(model: nn.Module, data: Any) -> tuple[float, float, int]:
    observer = MinMax()
    calibrate(model, {"fc": observer}, data)
    return (*observer.range(), observer.count)


@pytest.mark.parametrize("case", CASES)
def test_a_layer_sees_all_of_what_a_loader_yields(case: str) -> None:
    make, data, expected = CASES[case]
    torch.manual_seed(0)
    model = make()
    low, high, count = seen(model, data())
    assert (low, high) == (expected.min().item(), expected.max().item())
    assert count == expected.numel()
    int8 = qk.quantize(model, "static", data())
    assert isinstance(int8.fc, qk.QuantLinear)
    assert qk.report(int8).sqnr_db["output"] > 25


ENCODINGS: dict[str, Callable[[slice], Any]] = {
    "dict": lambda s: {"input_ids": IDS[s], "attention_mask": MASK[s]},
    "dict with labels": lambda s: {"input_ids": IDS[s], "attention_mask": MASK[s], "labels": Y[s]},
    "dict with more": lambda s: {"input_ids": IDS[s], "token_type_ids": MASK[s], "idx": [1, 2]},
    "encoding": lambda s: Encoding({"input_ids": IDS[s], "attention_mask": MASK[s]}),
    "encoding with labels": lambda s: Encoding({"labels": Y[s], "input_ids": IDS[s]}),
    "(encoding, y)": lambda s: (Encoding({"input_ids": IDS[s], "attention_mask": MASK[s]}), Y[s]),
    "(ids, mask, y)": lambda s: (IDS[s], MASK[s], Y[s]),
    "ids": lambda s: IDS[s],
}


@pytest.mark.parametrize("kind", [Text, Labelled])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_of_text_reach_a_model_with_or_without_labels(encoding: str, kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(False)
    batches = [ENCODINGS[encoding](s) for s in (slice(0, 3), slice(3, N))]
    assert seen(model, batches)[2] == N * 4
    int8 = qk.quantize(model, "static", batches)
    assert qk.report(int8).sqnr_db["logits"] > 15


@pytest.mark.parametrize("target", ["none", "list of dicts", "tensor"])
def test_lists_of_images_reach_a_detector(target: str) -> None:
    targets = {"list of dicts": [{"boxes": torch.rand(1, 4)}] * 3, "tensor": Y[:3]}
    batches = [IMAGE[:3], IMAGE[3:]] if target == "none" else [(IMAGE[:3], targets[target])] * 2
    torch.manual_seed(0)
    assert (
        seen(Images(), batches)[2] == sum(len(b if target == "none" else b[0]) for b in batches) * 4
    )
    collate = DataLoader(
        Rows(lambda i: (IMAGE[i], {"id": i})),
        batch_size=3,
        collate_fn=lambda b: tuple(zip(*b, strict=True)),
    )
    int8 = qk.quantize(Images(), "static", [IMAGE[:3]])
    assert isinstance(int8.fc, qk.QuantLinear)
    if target == "list of dicts":
        with pytest.raises(ValueError, match="tuple"):
            seen(Images(), collate)  # its assertion asks for a list


def test_a_loader_may_be_read_again_and_an_iterator_is_not_spent_by_the_example() -> None:
    torch.manual_seed(0)
    batches = DataLoader(TensorDataset(U, Y), batch_size=3)
    first, second = (qk.quantize(One(), "static", batches) for _ in range(2))
    assert [r.input_scale for r in qk.report(first).layers] == [
        r.input_scale for r in qk.report(second).layers
    ]
    assert seen(One(), iter(batches))[2] == U.numel()


def test_samples_on_worker_processes_and_batches_of_other_sizes_are_read() -> None:
    assert seen(One(), [U[:1], U[1:6], U[6:]])[2] == U.numel()
    assert seen(One(), [(U[:1], Y[:1]), (U[1:], Y[1:])])[2] == U.numel()


def test_the_reading_of_the_first_batch_holds_for_all() -> None:
    reader = BatchReader(Optional())
    assert reader.call([U, Y]).args == (U,)
    assert reader.call([U, V]).args == (U,)


EXAMPLES: dict[str, tuple[Any, Call]] = {
    "tensor": (U, Call((U,))),
    "tuple": ((U, V), Call((U, V))),
    "dict": ({"u": U}, Call((), {"u": U})),
    "encoding": (Encoding({"u": U}), Call((), {"u": U})),
    "list": ([U, V], Call(([U, V],))),
    "call": (Call((U,), {"v": V}), Call((U,), {"v": V})),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_stands_for_one_call(example: str) -> None:
    given, call = EXAMPLES[example]
    made = example_call(given)
    assert len(made.args) == len(call.args) and list(made.kwargs) == list(call.kwargs)
    assert all(a is b for a, b in zip(made.args, call.args, strict=True)) or example == "list"


@pytest.mark.parametrize("activation", ["dynamic", "static"])
def test_an_example_of_several_arguments_is_used_for_the_answer(activation: str) -> None:
    for example in ((U, V), {"u": U, "v": V}, Call((U,), {"v": V})):
        int8 = qk.quantize(Two(), activation, [(U, V)], example_inputs=example)
        assert qk.report(int8).sqnr_db["output"] > 25
