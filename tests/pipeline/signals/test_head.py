"""Heads give what the torch modules give that they were saved from, and refuse what is unclear."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from pipeline.signals import open_signals
from pipeline.signals.features import Features
from pipeline.signals.head import HeadSignal
from schemas.declaration import HeadSettings
from schemas.errors import SourceError
from schemas.signals import AESTHETIC
from schemas.storage import Store
from tests.pipeline.corpora import declare
from tests.pipeline.signals.models import (
    WIDTH,
    AutokerasNsfw,
    Sequence,
    clip_model,
    h14_nsfw,
    improved_aesthetic,
    write_head,
)


def features(num_pairs: int = 70) -> Features:
    """Embeddings of length 1, and one that is missing."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(num_pairs, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[3] = np.nan
    return Features(embeddings=rows.astype(np.float16), scores=None, numeric="where they came from")


def head(path: Path, folder: Path, **options: Any) -> HeadSignal:
    settings = HeadSettings(weights=path.name, **options)
    return HeadSignal(AESTHETIC, settings, str(path), clip_model(folder))


def linear(name: str) -> Callable[[], nn.Module]:
    """A single linear layer under a name."""

    def build() -> nn.Module:
        layer = nn.Linear(WIDTH, 1)
        return layer if not name else Holder(name, layer)

    return build


class Holder(nn.Module):
    """A module with one layer, by any name."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.add_module(name, layer)
        self._name = name

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.layer(rows)
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"{self._name}.{kind}": value for kind, value in self.layer.state_dict().items()}


def relu_mlp() -> nn.Module:
    return Sequence(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 1))


def gelu_mlp() -> nn.Module:
    return Sequence(nn.Linear(WIDTH, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, 1)).eval()


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (linear(""), {}),
        (linear("linear"), {}),
        (linear("rating"), {}),
        (improved_aesthetic, {}),
        (h14_nsfw, {}),
        (AutokerasNsfw, {}),
        (relu_mlp, {"activation": "relu"}),
        (gelu_mlp, {"activation": "gelu"}),
        (lambda: Sequence(nn.Linear(WIDTH, 8, bias=False), nn.Linear(8, 1)), {}),
        (lambda: nn.Linear(WIDTH, 1).half(), {}),
    ],
)
def test_scores_are_those_of_the_module(
    model: Path, tmp_path: Path, build: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    module = build()
    signal = head(write_head(tmp_path / "head.safetensors", module), model, **options)
    signal.check(WIDTH)
    given = features()
    found = signal.measure(given)
    with torch.inference_mode():
        expected = module.float()(torch.from_numpy(given.embeddings.astype(np.float32)))[:, 0]
    assert found.type == pa.float32()
    assert found[3].as_py() is None  # no embedding, no score
    assert found.null_count == 1
    present = np.isfinite(expected.numpy())
    assert found.to_numpy(zero_copy_only=False)[present] == pytest.approx(
        expected.numpy()[present], abs=1e-5
    )
    assert np.std(expected.numpy()[present]) > 1e-4  # they tell pairs apart


@pytest.mark.parametrize("positive", [0, 1])
def test_of_two_outputs_the_score_is_a_share(model: Path, tmp_path: Path, positive: int) -> None:
    torch.manual_seed(0)
    module = Sequence(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)).eval()
    path = write_head(tmp_path / "head.safetensors", module)
    given = features()
    found = head(path, model, activation="relu", positive=positive).measure(given)
    with torch.inference_mode():
        rows = module(torch.from_numpy(given.embeddings.astype(np.float32)))
        expected = rows.softmax(dim=1)[:, positive].numpy()
    present = np.isfinite(expected)
    assert found.to_numpy(zero_copy_only=False)[present] == pytest.approx(expected[present])


def test_a_score_does_not_depend_on_its_neighbours(model: Path, tmp_path: Path) -> None:
    signal = head(write_head(tmp_path / "head.safetensors", improved_aesthetic()), model)
    given = features()
    together = signal.measure(given).to_pylist()
    for place in (0, 3, 5, 69):
        alone = Features(
            embeddings=given.embeddings[place : place + 1], scores=None, numeric=given.numeric
        )
        assert signal.measure(alone).to_pylist() == together[place : place + 1]


def test_a_score_that_is_not_finite_is_null(model: Path, tmp_path: Path) -> None:
    layer = {"weight": torch.full((1, WIDTH), torch.inf), "bias": torch.zeros(1)}
    found = head(write_head(tmp_path / "head.safetensors", layer), model).measure(features())
    assert found.null_count == len(found)


def test_settings_are_the_weights_and_how_they_are_run(model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = write_head(tmp_path / "head.safetensors", nn.Linear(WIDTH, 1))
    elsewhere = tmp_path / "other" / "name.safetensors"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(path.read_bytes())
    first = head(path, model).settings()
    assert head(elsewhere, model).settings() == first
    assert head(path, model, activation="relu").settings() != first
    write_head(path, nn.Linear(WIDTH, 1))
    assert head(path, model).settings()["weights"] != first["weights"]
    assert head(path, model).settings()["clip"] == first["clip"]


def test_weights_are_found_from_the_corpus(model: Path, tmp_path: Path) -> None:
    write_head(tmp_path / "heads" / "nsfw.safetensors", AutokerasNsfw())
    signals = {
        "clip": {"model": f"local-dir:{model}"},
        "nsfw": {"weights": "heads/nsfw.safetensors"},
    }
    *_, found = open_signals(declare(signals=signals), Store(tmp_path))
    assert isinstance(found, HeadSignal)
    assert found.schema.name == "nsfw"
    found.check(WIDTH)
    (tmp_path / "heads" / "nsfw.safetensors").unlink()
    *_, missing = open_signals(declare(signals=signals), Store(tmp_path))
    with pytest.raises(
        SourceError, match=r"signals\.nsfw\.weights: .*nsfw\.safetensors.*not exist"
    ):
        missing.settings()


def test_the_environment_is_that_of_the_embeddings_and_of_torch(
    model: Path, tmp_path: Path
) -> None:
    signal = head(write_head(tmp_path / "head.safetensors", nn.Linear(WIDTH, 1)), model)
    assert signal.numeric(features()).startswith("where they came from-head-cpu-torch")


def test_an_embedding_of_another_width_is_refused(model: Path, tmp_path: Path) -> None:
    signal = head(write_head(tmp_path / "head.safetensors", improved_aesthetic(768)), model)
    with pytest.raises(
        SourceError, match=f"takes embeddings of 768 .* have {WIDTH}: name the head"
    ):
        signal.check(WIDTH)


@pytest.mark.parametrize(
    ("tensors", "options", "told"),
    [
        ({"weight": torch.zeros(5, WIDTH)}, {}, "5 outputs: which of them"),
        ({"weight": torch.zeros(2, WIDTH)}, {}, "say `positive: 0` or `positive: 1`"),
        ({"weight": torch.zeros(1, WIDTH)}, {"positive": 1}, "`positive` chooses between two"),
        ({}, {}, "Found: no tensor"),
        ({"bias": torch.zeros(1)}, {}, r"Found: bias \(1,\)"),
        ({"weight": torch.zeros(1, WIDTH), "mean": torch.zeros(WIDTH)}, {}, "go together"),
        ({"weight": torch.zeros(1, WIDTH, 1)}, {}, "no linear layer's"),
        ({"weight": torch.zeros(1, WIDTH), "bias": torch.zeros(2)}, {}, "no linear layer's"),
        (
            {"layers.0.weight": torch.zeros(8, WIDTH), "layers.2.weight": torch.zeros(1, 8)},
            {},
            "what lies between its layers is not in the file: say `activation: relu`",
        ),
        (
            {"layers.0.weight": torch.zeros(8, WIDTH), "layers.1.weight": torch.zeros(1, 9)},
            {},
            "8 outputs is followed by one that takes 9",
        ),
        (
            {"first.weight": torch.zeros(8, WIDTH), "last.weight": torch.zeros(1, 8)},
            {},
            "order of its layers is not in their names",
        ),
        (
            {"layers.0.weight": torch.zeros(8, WIDTH), "out.1.weight": torch.zeros(1, 8)},
            {},
            "order of its layers",
        ),
        (
            {"norm.mean": torch.zeros(WIDTH), "linear_1.weight": torch.zeros(1, WIDTH)},
            {},
            "go together",
        ),
        (
            {
                "norm.mean": torch.zeros(3),
                "norm.variance": torch.ones(3),
                "linear_1.weight": torch.zeros(1, WIDTH),
            },
            {},
            "`norm` and `linear_1` do not fit",
        ),
        (
            {
                "norm.mean": torch.zeros(WIDTH),
                "norm.variance": torch.ones(WIDTH),
                "dense.weight": torch.zeros(1, WIDTH),
            },
            {},
            "beside `norm` only",
        ),
    ],
)
def test_what_is_unclear_is_refused_with_what_was_found(
    model: Path, tmp_path: Path, tensors: dict[str, Tensor], options: dict[str, Any], told: str
) -> None:
    path = write_head(tmp_path / "head.safetensors", tensors)
    with pytest.raises(SourceError, match=told) as caught:
        head(path, model, **options).check(WIDTH)
    assert f"signals.aesthetic.weights: {path} cannot be read as a head" in str(caught.value)
    assert "Found: " in str(caught.value)
    assert "Expected is one linear layer" in str(caught.value)


def test_another_kind_of_file_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    torch.save({"weight": torch.zeros(1, WIDTH)}, path)
    with pytest.raises(SourceError, match=r"no safetensors file .* Convert it"):
        head(path, model).check(WIDTH)
