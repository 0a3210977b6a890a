import json
from typing import Any

import pytest
import torch

from qkernels.quantization import QuantConfig


def test_json_round_trip_keeps_every_field() -> None:
    config = QuantConfig(
        activation="dynamic",
        weight="per_tensor",
        symmetric=False,
        observer="mse",
        percentile=99.9,
        momentum=0.5,
        include=("body.*", "Conv2d"),
        exclude=("head",),
        overrides={"Linear": {"activation": "weight_only"}},
        fold_batch_norm=False,
        strict=True,
    )
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation": "statik"}, "activation='statik'.*static, dynamic, weight_only"),
        ({"weight": 8}, "weight=8.*per_channel, per_tensor"),
        ({"observer": "max"}, "observer='max'.*entropy"),
        ({"symmetric": 1}, "symmetric=1.*True, False, None"),
        ({"strict": "yes"}, "strict='yes'"),
        ({"percentile": 50}, "percentile=50"),
        ({"percentile": "99"}, "percentile='99'"),
        ({"percentile": float("nan")}, "percentile=nan"),
        ({"momentum": True}, "momentum=True"),
        ({"include": "conv*"}, r"include='conv\*'.*list"),
        ({"exclude": [3]}, "exclude=.*list"),
        ({"exclude": None}, "exclude=None.*list"),
        ({"wieght": "per_tensor"}, "'wieght'.*choose from activation"),
        ({"overrides": ["head"]}, "overrides="),
        ({"overrides": {"head": "dynamic"}}, "overrides.'head'.='dynamic'"),
        ({"overrides": {"head": {"strict": True}}}, "overrides.'head'.: 'strict'"),
        ({"overrides": {"head": {"observer": "max"}}}, "observer='max'"),
    ],
)
def test_bad_values_are_named_with_the_choices(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantConfig.from_dict(values)


def test_shorthands_mean_the_same_config() -> None:
    assert QuantConfig.of(None) == QuantConfig()
    assert QuantConfig.of("dynamic") == QuantConfig(activation="dynamic")
    assert QuantConfig.of({"weight": "per_tensor"}) == QuantConfig(weight="per_tensor")
    with pytest.raises(ValueError, match="config=3"):
        QuantConfig.of(3)  # type: ignore[arg-type]


def test_later_overrides_win_and_match_by_name_or_type() -> None:
    config = QuantConfig(
        overrides={
            "Linear": {"activation": "dynamic", "observer": "mse"},
            "*.head": {"activation": "weight_only"},
        }
    )
    head, other = (
        config.for_layer([("net.head", "Linear")]),
        config.for_layer([("net.fc", "Linear")]),
    )
    assert (head.activation, head.observer) == ("weight_only", "mse")
    assert other.activation == "dynamic"
    assert config.for_layer([("net.conv", "Conv2d")]).activation == "static"


@pytest.mark.parametrize(
    ("activation", "asked", "got"),
    [("static", None, False), ("dynamic", None, True), ("static", True, True)],
)
def test_symmetric_is_decided_per_layer(activation: str, asked: bool | None, got: bool) -> None:
    config = QuantConfig.from_dict({"activation": activation, "symmetric": asked})
    assert config.for_layer([("x", "Linear")]).symmetric is got


def test_exclude_wins_over_include() -> None:
    config = QuantConfig(include=("body.*",), exclude=("Conv2d",))
    assert config.why_not([("body.fc", "Linear")]) is None
    assert config.why_not([("body.conv", "Conv2d")]) == "excluded by 'Conv2d'"
    assert config.why_not([("head", "Linear")]) == "not in include"


def test_data_in_the_place_of_the_config_are_refused_without_being_printed() -> None:
    with pytest.raises(
        ValueError,
        match=r"^config=a list is not known: give a QuantConfig.*calibration data come after it$",
    ):
        QuantConfig.of([torch.randn(8, 4)])  # type: ignore[arg-type]
