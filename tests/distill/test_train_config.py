import pytest

from qkernels.distill import TrainConfig, learning_rate


def test_json_round_trip() -> None:
    config = TrainConfig(epochs=3, lr=0.02, precision="bf16", clip_grad_norm=1.0)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", -1.0), ("alpha", 1.5), ("optimizer", "lion"), ("precision", "fp8")],
)
def test_a_bad_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"learning_rate"):
        TrainConfig(learning_rate=1)  # type: ignore[call-arg]


def test_warmup_must_end_before_the_run() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs=2.0 must be below epochs=2"):
        TrainConfig(epochs=2, warmup_epochs=2)


def test_schedule_rises_linearly_then_falls_as_a_cosine() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [learning_rate(config, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)  # half way between step 10 and step 50
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
