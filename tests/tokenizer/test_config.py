"""Configs travel through JSON unchanged, and nothing unknown gets in."""

import json
from typing import Any

import pytest

from schemas.errors import ArtifactError
from tokenizer.config import (
    PRESETS,
    DecisionConfig,
    EncoderConfig,
    HeadConfig,
    PreprocessConfig,
    TokenizerConfig,
    TrainConfig,
    from_json,
    to_json,
)

CONFIGS = [
    TokenizerConfig.preset("tiny"),
    TokenizerConfig.preset("lavit"),
    TrainConfig(),
    PreprocessConfig(image_size=64),
    DecisionConfig(rule="fixed", num_kept=5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_json_round_trip(config: Any) -> None:
    value = json.loads(json.dumps(to_json(config)))
    assert from_json(type(config), value, where="test") == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v["head"].update(codebok_size=4), "codebok_size"),
        (lambda v: v["head"].pop("code_dim"), "code_dim"),
        (lambda v: v["head"].update(codebook_size="512"), "codebook_size"),
        (lambda v: v["head"].update(num_heads=True), "num_heads"),
        (lambda v: v["decision"].update(rule="random"), "rule"),
        (lambda v: v.update(encoder=[1]), "encoder"),
    ],
)
def test_altered_json_is_refused_by_name(change: Any, named: str) -> None:
    value = to_json(TokenizerConfig.preset("tiny"))
    change(value)
    with pytest.raises(ArtifactError, match=named):
        from_json(TokenizerConfig, value, where="test")


def test_whole_numbers_are_good_floats() -> None:
    value = to_json(DecisionConfig()) | {"offset": 2}
    assert from_json(DecisionConfig, value, where="test").offset == 2.0


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (EncoderConfig, {"feature_layer": 3}),
        (EncoderConfig, {"model": ""}),
        (HeadConfig, {"positions": "3d"}),
        (HeadConfig, {"codebook_size": 1}),
        (DecisionConfig, {"tau": 1.0}),
        (DecisionConfig, {"rule": "fixed"}),
        (DecisionConfig, {"num_kept": 3}),
        (TrainConfig, {"keep_share": 0.0}),
        (TrainConfig, {"deployed_steps": 0}),
        (TrainConfig, {"objective": "hope"}),
        (TrainConfig, {"batch_size": 0}),
        (PreprocessConfig, {"image_size": 64, "decoder": "opencv"}),
    ],
)
def test_impossible_values_are_refused(kind: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        kind(**fields)


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(ValueError, match="tiny"):
        TokenizerConfig.preset("huge")
    assert set(PRESETS) == {"tiny", "lavit"}


@pytest.mark.parametrize("num_steps", [4, 10, 2001])
def test_phases_add_up_to_the_budget(num_steps: int) -> None:
    train = TrainConfig.of_steps(num_steps)
    assert train.feature_steps + train.joint_steps + train.deployed_steps == num_steps
    assert train.deployed_steps == num_steps // 4
