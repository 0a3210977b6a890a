"""From an example or a batch to the arguments of a forward; every form of loader is in tests/quantization."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkernels.modules.calling import BatchReader, Call, device_of, example_call
from qkernels.utils.errors import first_line

X, Y = torch.ones(2, 3), torch.zeros(2)


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Two(nn.Module):
    def forward(self, u: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
        return u + v


class Named(nn.Module):
    def forward(self, *, pixel_values: Tensor, return_dict: bool = True) -> Tensor:
        return pixel_values


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def read(model: nn.Module, batch: Any) -> Call:
    return BatchReader(model).call(batch)


@pytest.mark.parametrize(
    ("model", "batch", "args", "kwargs"),
    [
        (One(), X, (X,), {}),
        (One(), (X, Y), (X,), {}),
        (One(), [X], (X,), {}),
        (One(), {"x": X, "labels": Y}, (), {"x": X}),
        (One(), ({"x": X}, Y), (), {"x": X}),
        (Two(), (X, X), (X, X), {}),
        (Two(), (X, X, Y), (X, X), {}),
        (Two(), ((X, X), Y), (X, X), {}),
        (Two(), {"v": X, "u": X, "scale": 2.0, "id": 1}, (), {"v": X, "u": X, "scale": 2.0}),
        (Named(), {"pixel_values": X, "labels": Y}, (), {"pixel_values": X}),
        (Anything(), {"a": X, "b": Y}, (), {"a": X, "b": Y}),
        (Anything(), (X, Y), (X,), {}),
    ],
)
def test_a_batch_becomes_the_arguments_that_the_forward_takes(
    model: nn.Module, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    call = read(model, batch)
    assert len(call.args) == len(args) and all(a is b for a, b in zip(call.args, args, strict=True))
    assert call.kwargs.keys() == kwargs.keys()
    assert all(call.kwargs[k] is kwargs[k] for k in kwargs)


@pytest.mark.parametrize("batch", [None, 1.0, "x", [], (), b"x", object(), {1, 2}])
def test_what_is_no_batch_is_named(batch: Any) -> None:
    with pytest.raises(ValueError, match=rf"a batch is a {type(batch).__name__}"):
        read(One(), batch)


def test_a_batch_that_fits_no_reading_says_why_each_failed() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("images of 3 channels only\nsecond line")

    with pytest.raises(ValueError, match="input and labels: images of 3 channels only") as caught:
        read(Refusing(), [torch.ones(3, 4, 4), torch.ones(3, 4, 4)])
    assert "second line" not in str(caught.value)


def test_an_example_is_positional_named_or_one_argument() -> None:
    assert example_call((X, Y)).args == (X, Y)
    assert example_call({"u": X}).kwargs == {"u": X}
    assert example_call([X, Y]).args == ([X, Y],)
    assert example_call(X).args == (X,)
    call = Call((X,))
    assert example_call(call) is call


def test_a_call_tells_its_shapes() -> None:
    assert (
        Call((X,), {"y": Y, "n": 3}).described()
        == "torch.float32 [2, 3], y=torch.float32 [2], n=int"
    )
    assert Call().described() == "nothing"


def test_a_call_knows_what_it_leaves_at_none() -> None:
    class Optional(nn.Module):
        def forward(
            self, x: Tensor, mask: Tensor | None = None, flag: bool = False, *, bias: Any = None
        ) -> Tensor:
            return x

    assert Call((X,)).left_at_none(Optional()) == ["mask", "bias"]
    assert Call((X, None)).left_at_none(Optional()) == ["bias"]
    assert Call((), {"x": X, "bias": 1}).left_at_none(Optional()) == ["mask"]
    assert Call((X,)).left_at_none(Anything()) == []


def test_containers_reach_the_forward_as_they_are() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)

        def forward(self, a: Any, b: Any, c: Any) -> list[type]:
            return [type(a), type(b), type(c)]

    class Mine(dict):
        pass

    assert Call(([X], (X,)), {"c": Mine(x=X)}).run(Kinds()) == [list, tuple, Mine]


def test_a_model_on_one_device_or_none() -> None:
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(nn.ReLU()) is None
    mixed = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))
    assert device_of(mixed) is None


def test_the_first_line_of_an_error_or_its_class() -> None:
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(KeyError()) == "KeyError"
