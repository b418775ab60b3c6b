"""CLIP scores are open_clip's, do not depend on neighbours, and a wrong model is told plainly."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.pair_shard import Pair
from pipeline.signals import open_signals
from pipeline.signals.clip import ClipSignal
from schemas.declaration import ClipSettings
from schemas.errors import CorruptShardError, DeclarationError, SourceError
from schemas.signals import CLIP
from schemas.storage import Store
from tests.pipeline.corpora import cut_file, declare, draw_pair

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_model(folder: Path, *, seed: int = 0, broken: bool = False) -> Path:
    """A small CLIP with random weights (`broken`: with one that is no number)."""
    import open_clip
    from safetensors.torch import save_file

    config: dict[str, dict[str, Any]] = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {
                "image_size": 32,
                "layers": 2,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": 12,
                "vocab_size": 49408,
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = open_clip.CLIP(**config["model_cfg"]).state_dict()
    if broken:
        state["visual.proj"][0, 0] = torch.nan
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("clip") / "model")


def signal(folder: Path, *, batch_size: int = 4) -> ClipSignal:
    return ClipSignal(ClipSettings(model=f"local-dir:{folder}", batch_size=batch_size))


def scores(found: ClipSignal, pairs: list[Pair]) -> list[float | None]:
    table = found.measure(pairs)
    assert table.schema.equals(CLIP.arrow())
    assert table["key"].to_pylist() == [pair.key for pair in pairs]
    values: list[float | None] = table["clip_score"].to_pylist()
    return values


PAIRS = [draw_pair(number) for number in range(7)]


def test_scores_are_those_of_open_clip(model: Path) -> None:
    import open_clip

    network, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{model}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{model}")
    expected = []
    for pair in PAIRS:
        with torch.inference_mode(), Image.open(io.BytesIO(pair.image)) as image:
            image_features = network.encode_image(
                preprocess(image.convert("RGB"))[None], normalize=True
            )
            text_features = network.encode_text(tokenize([pair.caption]), normalize=True)
            expected.append(float((image_features * text_features).sum()))
    found = scores(signal(model), PAIRS)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len({round(score, 4) for score in expected}) == len(PAIRS)  # they tell pairs apart


def test_a_score_does_not_depend_on_its_neighbours(model: Path) -> None:
    together = scores(signal(model), PAIRS)
    assert [scores(signal(model), [pair])[0] for pair in PAIRS] == together
    assert scores(signal(model), PAIRS[::-1]) == together[::-1]


def test_a_score_that_is_no_number_is_null(tmp_path: Path) -> None:
    broken = write_model(tmp_path / "broken", broken=True)
    assert scores(signal(broken), PAIRS[:2]) == [None, None]


def test_settings_are_the_files_not_their_place(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    settings = signal(model).settings()
    assert signal(copy).settings() == settings
    (copy / "README.md").write_text("notes")
    (copy / ".cache").write_text("hidden")
    assert signal(copy).settings() == settings
    assert signal(copy, batch_size=9).settings() == settings  # the environment, not the values
    (copy / "open_clip_config.json").write_text("{}")
    assert signal(copy).settings() != settings


def test_settings_of_a_checkpoint_file_are_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"one")
    clip = ClipSettings(model="ViT-B-32", pretrained="weights.pt")
    first = ClipSignal(clip, root=str(tmp_path)).settings()
    file.write_bytes(b"two")
    second = ClipSignal(clip, root=str(tmp_path)).settings()
    assert first["model"] == second["model"] == "ViT-B-32"
    assert first["pretrained"] != second["pretrained"]
    tag = ClipSignal(clip.model_copy(update={"pretrained": "openai"}), root=str(tmp_path))
    assert tag.settings() == {"model": "ViT-B-32", "pretrained": "openai"}


def test_opening_signals_and_their_settings_loads_no_model(model: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.signals import open_signals\n"
        "from schemas.declaration import Declaration\n"
        "from schemas.storage import Store\n"
        "declaration = Declaration.model_validate({'sources': [{'name': 'a', 'urls': 'x'}],\n"
        f"    'signals': {{'clip': {{'model': 'local-dir:{model}'}}}}}})\n"
        "found = [item.settings() for item in open_signals(declaration, Store('/'))]\n"
        "assert len(found) == 3\n"
        "print({'torch', 'open_clip', 'ray'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_relative_folder_starts_at_the_corpus(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "models" / "small")
    declaration = declare(signals={"clip": {"model": "local-dir:models/small"}})
    *_, clip = open_signals(declaration, Store(tmp_path))
    assert clip.schema.name == "clip"
    assert clip.settings() == signal(model).settings()


def test_a_missing_folder_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        signal(tmp_path / "nowhere").settings()
    with pytest.raises(SourceError, match=r"has no open_clip_config\.json"):
        signal(tmp_path).measure(PAIRS[:1])


def test_a_damaged_weight_file_is_a_source_error(model: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(model, tmp_path / "damaged")
    cut_file(damaged / WEIGHTS, 1000)
    with pytest.raises(SourceError, match="cannot load"):
        signal(damaged).measure(PAIRS[:1])
    (damaged / WEIGHTS).unlink()
    with pytest.raises(SourceError, match="cannot load"):
        signal(damaged).measure(PAIRS[:1])


@pytest.mark.parametrize(
    ("name", "pretrained", "told"),
    [
        ("ViT-B-23", "openai", "no model 'ViT-B-23'; did you mean 'ViT-B-"),
        ("ViT-B-32", "laion9b", "no pretrained weights 'laion9b'.* known are .*openai"),
        ("ViT-B-32", None, "has no `pretrained`, so its weights would be random"),
    ],
)
def test_an_unknown_model_is_a_declaration_error(
    name: str, pretrained: str | None, told: str
) -> None:
    with pytest.raises(DeclarationError, match=told):
        ClipSignal(ClipSettings(model=name, pretrained=pretrained)).measure(PAIRS[:1])


def test_a_damaged_image_is_named(model: Path) -> None:
    with pytest.raises(CorruptShardError, match="cannot be decoded") as caught:
        signal(model).measure([PAIRS[0], Pair("broken", b"no image", "")])
    assert caught.value.key == "broken"
