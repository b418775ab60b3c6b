"""A command line says what options say, and nonsense is one sentence."""

import dataclasses

import pytest

from schemas.errors import DeclarationError
from tokenizer.__main__ import parse_options
from tokenizer.config import TokenizerConfig, TrainConfig
from tokenizer.train_options import TrainOptions


def test_a_command_line_says_what_options_say() -> None:
    found = parse_options(
        [
            *("train", "a.tar", "folder", "--output", "out", "--steps", "40", "--quantizer", "fsq"),
            *("--fsq-levels", "5,4,3", "--rule", "fixed", "--num-kept", "9", "--resume"),
            *("--keep-share", "0.25", "--positions", "none", "--feature-cache", "cache"),
        ]
    )
    expected = TrainOptions(
        output="out",
        steps=40,
        quantizer="fsq",
        fsq_levels="5,4,3",
        rule="fixed",
        num_kept=9,
        resume=True,
        keep_share=0.25,
        positions="none",
        feature_cache="cache",
    )
    assert found == (["a.tar", "folder"], expected)
    head = expected.tokenizer_config().head
    assert (head.fsq_levels, head.codebook_size, head.positions) == ((5, 4, 3), 60, "none")
    assert expected.train_config().keep_share == 0.25


def test_defaults_are_those_of_the_configs() -> None:
    options = TrainOptions(output="out")
    assert options.tokenizer_config() == TokenizerConfig.preset("tiny")
    assert options.train_config() == dataclasses.replace(
        TrainConfig(), pictures_every_steps=options.pictures_every
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": "huge"}, "no tokenizer preset 'huge'"),
        ({"quantizer": "hope"}, "quantizer must be one of"),
        ({"rule": "fixed"}, "num_kept goes with rule `fixed`"),
        ({"fsq_levels": "8,8"}, "fsq_levels goes with quantizer fsq"),
        ({"fsq_levels": "8,eight", "quantizer": "fsq"}, "must be numbers with commas"),
        ({"fsq_levels": "8,2", "quantizer": "fsq"}, "over 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_nonsense_is_refused(change: dict[str, object], told: str) -> None:
    options = TrainOptions(output="out", **change)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=told):
        _ = options.train_config(), options.tokenizer_config()
