"""Measurements say what they mean, in numbers that JSON knows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import ArtifactError, SourceError
from tokenizer.evaluate import (
    compare_codes,
    evaluate,
    find_failures,
    histogram,
    measure_retrieval,
)
from tokenizer.report import format_table


@pytest.fixture(scope="module")
def result(drawing_artifact: str, images: list[bytes]) -> dict[str, Any]:
    return evaluate(drawing_artifact, images, max_images=60)


def test_result_is_json(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["num_images"] == 60


def test_reconstruction_stands_beside_its_references(result: dict[str, Any]) -> None:
    centred = result["reconstruction"]["centred"]
    assert centred["mean_feature"]["all"] == pytest.approx(0.0, abs=1e-6)
    assert centred["deployed"]["all"] > centred["place_mean"]["all"]
    assert centred["unquantized"]["all"] > centred["deployed"]["all"] - 0.02
    for name, part in centred.items():
        if name != "mean_feature":
            low, high = sorted((part["kept"], part["dropped"]))
            assert low <= part["all"] <= high
    gap = centred["sampled"]["all"] - centred["deployed"]["all"]
    assert result["reconstruction"]["sampled_less_deployed"] == pytest.approx(gap)


def test_words_add_up(result: dict[str, Any]) -> None:
    words = result["words"]
    assert words["all"]["mean"] == pytest.approx(words["codes"]["mean"] + words["places"]["mean"])
    assert words["codes"]["mean"] == pytest.approx(64 * result["keep_share"]["mean"])
    for part in words.values():
        assert sum(part["histogram"]["counts"]) == 60


def test_batch_shape_changes_next_to_nothing(result: dict[str, Any]) -> None:
    assert result["agreement"]["batch_shape"]["codes"] > 0.99
    assert 0.5 < result["agreement"]["bfloat16"]["codes"] <= 1.0


def test_table_has_every_measurement(result: dict[str, Any]) -> None:
    table = format_table(result)
    for part in (
        "as deployed",
        "patches sampled",
        "without quantization",
        "mean of the place",
        "place words",
        "codebook usage",
        "edge density",
        "retrieval",
        "bfloat16",
        "images a second",
        "bits a picture",
        "mean of all pictures",
        "PSNR",
    ):
        assert part in table
    usage = f"{result['codebook']['codebook_usage']:.3f}"
    assert usage in next(line for line in table.splitlines() if "usage" in line)
    lines = [line for line in table.splitlines() if not line.startswith("FAILURE")]
    assert max(len(line) for line in lines) <= 80
    assert next(line for line in lines[::-1] if line).startswith("raw cosine")


def test_drawn_pictures_stand_beside_the_mean_picture(result: dict[str, Any]) -> None:
    pictures = result["pictures"]
    assert pictures["num_images"] == 60
    assert pictures["drawn"]["l1"] < pictures["mean_picture"]["l1"]
    assert pictures["drawn"]["psnr"] > pictures["mean_picture"]["psnr"]
    assert -1 <= pictures["mean_picture"]["cosine"] < pictures["drawn"]["cosine"] <= 1


def test_bits_are_those_of_the_words(result: dict[str, Any]) -> None:
    bits, words = result["bits"], result["words"]
    assert bits["mean"] == pytest.approx(words["all"]["mean"] * np.log2(64 + 48))
    assert bits["per_pixel"] == pytest.approx(bits["mean"] / 32**2)
    assert 0 < bits["entropy_coded"] <= bits["mean"]


def test_without_decoders_the_rest_is_measured(artifact: str, images: list[bytes]) -> None:
    found = evaluate(artifact, images[:20])
    assert found["pictures"] is None
    assert "no pixel decoder" in format_table(found)
    bare = found | {"reconstruction": None, "retrieval": None}
    bare["failures"] = find_failures(bare)
    table = format_table(bare)
    assert "no decoder" in table
    assert "codebook usage" in table


def test_what_is_plainly_wrong_is_a_failure(result: dict[str, Any]) -> None:
    sound = result | {
        "reconstruction": result["reconstruction"] | {"sampled_less_deployed": 0.0},
        "codebook": {"codebook_usage": 0.95, "codebook_perplexity": 40, "vectors_per_code": 30},
        "agreement": {"batch_shape": {"codes": 1.0}, "bfloat16": {"codes": 0.98}},
    }
    assert find_failures(sound) == []
    pictures = sound["pictures"]
    means = sound["reconstruction"]["centred"]["place_mean"]
    for changed, told in (
        ({"codebook": sound["codebook"] | {"codebook_usage": 0.5}}, "50.0% of the codes"),
        ({"agreement": sound["agreement"] | {"bfloat16": {"codes": 0.9}}}, "bfloat16"),
        ({"agreement": sound["agreement"] | {"batch_shape": {"codes": 0.9}}}, "batch shapes"),
        ({"pictures": pictures | {"drawn": pictures["mean_picture"]}}, "mean picture"),
        (
            {
                "reconstruction": sound["reconstruction"]
                | {"centred": {"deployed": means, "place_mean": means}}
            },
            "mean of each place",
        ),
    ):
        (failure,) = find_failures(sound | changed)
        assert told in failure
    few = sound["codebook"] | {"codebook_usage": 0.5, "vectors_per_code": 5}
    assert find_failures(sound | {"codebook": few}) == []  # unused codes may be chance


def test_gap_is_a_failure_only_if_deployed_is_worse(result: dict[str, Any]) -> None:
    for gap, failed in ((0.02, True), (0.005, False), (-0.3, False)):
        changed = result | {
            "reconstruction": result["reconstruction"] | {"sampled_less_deployed": gap}
        }
        assert bool(find_failures(changed)) == failed
        changed["failures"] = find_failures(changed)
        assert ("FAILURE" in format_table(changed)) == failed


def test_retrieval_counts_own_images() -> None:
    features = torch.eye(5)
    assert measure_retrieval(features * 3, features)["recall_at_1"] == 1.0
    assert measure_retrieval(features.roll(1, 0), features)["recall_at_1"] == 0.0


def test_comparing_codes_tells_masks_from_codes() -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    other = np.array([[True, True, False], [True, True, False]])
    found = compare_codes((mask, np.array([1, 2, 3])), (other, np.array([1, 9, 3, 4])))
    assert found == {
        "keep_decisions": pytest.approx(5 / 6),
        "codes": pytest.approx(2 / 3),
        "images": 0.0,
    }


@pytest.mark.parametrize("values", [[0], [3, 3, 3], list(range(200)), [0, 64]])
def test_histogram_counts_every_value(values: list[int]) -> None:
    found = histogram(np.array(values))["histogram"]
    assert sum(found["counts"]) == len(values)
    assert len(found["edges"]) == len(found["counts"]) + 1


def test_nothing_to_measure(artifact: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images"):
        evaluate(artifact, [])
    with pytest.raises(ArtifactError, match="no such tokenizer folder"):
        evaluate(str(tmp_path / "nothing"), [b""])
