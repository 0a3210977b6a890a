"""The graph of the call that is really made."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkernels.modules.calling import Call
from qkernels.modules.capture import Capture, CaptureError, capture, captures, guessed_call

X = torch.randn(2, 3, 8, 8)


class Flags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, gate: Tensor | None = None, relu: bool = False) -> Any:
        h = self.a(x)
        if gate is not None:
            h = h * gate
        if relu:
            h = F.relu(h)
        return {"y": self.norm(self.b(h)), "h": h}


def operations(found: Capture) -> list[str]:
    return [str(n.target).split(".")[1] for n in found.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Call((X,)), ["conv2d", "conv2d", "batch_norm"]),
        (Call((X,), {"relu": True}), ["conv2d", "relu", "conv2d", "batch_norm"]),
        (Call((X, torch.ones(1))), ["conv2d", "mul", "conv2d", "batch_norm"]),
        (Call((), {"x": X, "gate": None}), ["conv2d", "conv2d", "batch_norm"]),
    ],
)
def test_flags_and_optional_tensors_are_what_they_are_in_the_call(
    call: Call, expected: list[str]
) -> None:
    assert operations(capture(Flags(), call)) == expected


def test_every_tensor_has_its_owner_and_every_node_its_scope() -> None:
    model = nn.Sequential(Flags())
    found = capture(model, Call((X,)))
    convs = [n for n in found.graph.nodes if "conv2d" in str(n.target)]
    assert [found.owner(n.args[1]) for n in convs] == [("0.a", "weight"), ("0.b", "weight")]
    assert found.owner(convs[0]) is None
    assert [found.scope(n) for n in convs] == [["", "0", "0.a"], ["", "0", "0.b"]]
    assert set(found.tensors.values()) <= set(model.state_dict())


def test_a_capture_leaves_the_model_as_it_was() -> None:
    class Counting(Flags):
        def __init__(self) -> None:
            super().__init__()
            self.cache: dict[str, Any] = {}
            self.last = None

        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            self.cache["x"] = self.last = x * self.norm.weight.mean()
            return super().forward(x)["y"]

    model = Counting().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        capture(model, Call((X,)))
        assert model.cache == {} and model.last is None and model.training
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Branching(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(-x if float(x.sum()) > 1e9 else x)


def test_a_forward_that_branches_on_values_is_a_reason_not_a_crash() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Branching(nn.Conv2d(3, 4, 3)), Call((X,)))
    assert str(caught.value) and "\n" not in str(caught.value)


def test_the_largest_parts_are_captured_where_the_model_cannot_be() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    why, *parts = captures(Branching(body), Call((X,)))
    assert isinstance(why, str) and "Branching cannot be captured" in why
    (part,) = parts
    assert isinstance(part, Capture)
    assert operations(part) == ["conv2d", "batch_norm", "relu"]
    assert set(part.tensors.values()) <= set(Branching(body).state_dict())


class Outside(Branching):
    def __init__(self, use: str) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        first = self.body[0]
        if self.use == "called":
            return y + first(x)
        if self.use == "read":
            return y + first.weight.sum()
        if self.use == "asked":
            return y.to(first.weight.dtype) * first.weight.shape[0]
        if self.use == "state dict":
            return y + sum(v.sum() for v in self.body.state_dict().values())
        return y


@pytest.mark.parametrize("use", ["called", "read", "asked", "nothing"])
def test_a_part_that_is_used_outside_of_its_call_is_not_captured(use: str) -> None:
    found = [f for f in captures(Outside(use), Call((X,))) if isinstance(f, Capture)]
    read = {name for f in found for name in f.tensors.values()}
    assert ("body.0.weight" in read) == (use in ("asked", "nothing"))


def test_a_part_that_is_called_twice_is_not_captured() -> None:
    class Twice(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.body(x)

    body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    assert [f for f in captures(Twice(body), Call((X,))) if isinstance(f, Capture)] == []


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv1d(3, 4, 3),
        nn.Linear(5, 4),
        nn.Embedding(7, 4),
        nn.Linear(5, 4).double(),
        nn.Conv2d(3, 4, 3).bfloat16(),
    ],
)
def test_an_input_is_guessed_for_the_first_layer(first: nn.Module) -> None:
    model = nn.Sequential(first)
    call = guessed_call(model)
    assert call is not None
    call.run(model)


@pytest.mark.parametrize(
    "model", [nn.ReLU(), nn.Sequential(), nn.Bilinear(2, 2, 2), nn.Linear(2, 2).to("meta")]
)
def test_no_guess_is_none(model: nn.Module) -> None:
    assert guessed_call(model) is None
