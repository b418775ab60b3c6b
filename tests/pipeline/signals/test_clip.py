"""CLIP scores are open_clip's, do not depend on neighbours, and a wrong model is told plainly."""

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.pair_shard import Pair
from pipeline.signals import open_signals
from pipeline.signals.clip import ClipSignal
from pipeline.signals.clip_model import ClipModel
from pipeline.signals.features import FeaturePass, Features
from pipeline.signals.sample import Sample
from schemas.declaration import ClipSettings
from schemas.errors import CorruptShardError, DeclarationError, SourceError
from schemas.storage import Store
from tests.pipeline.corpora import cut_file, declare, draw_image, draw_pair
from tests.pipeline.signals.models import WEIGHTS, clip_model, write_model

PAIRS = [draw_pair(number) for number in range(7)]
SCENES_CLIP = Path(__file__).parents[3] / "tokenizer" / "assets" / "scenes-clip"


def look(model: ClipModel, pairs: list[Pair], *, with_scores: bool = True) -> Features:
    """What one pass says of the pairs."""
    features = FeaturePass(
        model=model, with_scores=with_scores, spent=lambda _: contextlib.nullcontext()
    )
    for pair in pairs:
        features.add(features.prepare(Sample(pair)))
    return features.finish()


def scores(model: ClipModel, pairs: list[Pair]) -> list[float | None]:
    values: list[float | None] = ClipSignal(model).measure(look(model, pairs)).to_pylist()
    return values


def embeddings(model: ClipModel, pairs: list[Pair]) -> np.ndarray[Any, np.dtype[np.float16]]:
    return look(model, pairs, with_scores=False).embeddings


def of_open_clip(folder: Path, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised features of images and captions, one by one, by open_clip alone."""
    import open_clip

    network, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    images, texts = [], []
    with torch.inference_mode():
        for pair in pairs:
            with Image.open(io.BytesIO(pair.image)) as image:
                pixels = preprocess(image.convert("RGB"))[None]
            images.append(network.encode_image(pixels, normalize=True))
            texts.append(network.encode_text(tokenize([pair.caption]), normalize=True))
    return torch.cat(images), torch.cat(texts)


def test_scores_are_those_of_open_clip(model: Path) -> None:
    images, texts = of_open_clip(model, PAIRS)
    expected = (images * texts).sum(dim=1).tolist()
    assert scores(clip_model(model), PAIRS) == pytest.approx(expected, abs=1e-6)
    assert len({round(score, 4) for score in expected}) == len(PAIRS)  # they tell pairs apart


def test_embeddings_are_those_of_open_clip_as_halves(model: Path) -> None:
    images, _ = of_open_clip(model, PAIRS)
    found = embeddings(clip_model(model), PAIRS)
    assert found.dtype == np.float16
    # Half a step of a half, and what the fixed batch shape changes in the last bit before.
    assert np.abs(found.astype(np.float32) - images.numpy()).max() < 2**-11
    assert np.linalg.norm(found.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("size", [(64, 48), (48, 200), (300, 31), (32, 32)])
def test_the_network_sees_what_open_clip_would_show_it(model: Path, size: tuple[int, int]) -> None:
    """Whatever the image's shape: our batched way from pixels to numbers is bit for bit theirs."""
    import open_clip

    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{model}")
    loaded = clip_model(model).load()
    with Image.open(io.BytesIO(draw_image(1, width=size[0], height=size[1]))) as opened:
        picture = opened.convert("RGB")
    crop = torch.from_numpy(loaded.crop(picture))
    found = loaded.normalize(crop.permute(2, 0, 1).contiguous().float().div_(255)[None])[0]
    assert torch.equal(found, preprocess(picture))


def test_a_score_does_not_depend_on_its_neighbours(model: Path) -> None:
    clip = clip_model(model)
    together = scores(clip, PAIRS)
    assert [scores(clip, [pair])[0] for pair in PAIRS] == together
    assert scores(clip, PAIRS[::-1]) == together[::-1]
    alone = np.concatenate([embeddings(clip, [pair]) for pair in PAIRS])
    assert np.array_equal(alone, embeddings(clip, PAIRS))


def test_a_trained_model_scores_a_true_caption_above_a_false_one() -> None:
    """With the weights that ship with the project, in both precisions."""
    from jobs.demo.scenes import draw_scene

    scenes = [draw_scene(seed) for seed in range(24)]
    true = [Pair(str(seed), scene.jpeg(), scene.caption) for seed, scene in enumerate(scenes)]
    false = [
        Pair(pair.key, pair.image, scenes[place - 1].caption) for place, pair in enumerate(true)
    ]
    exact: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    for precision in ("float32", "bfloat16"):
        clip = clip_model(SCENES_CLIP, batch_size=8, precision=precision)
        found = np.array([scores(clip, true), scores(clip, false)], np.float64)
        assert (found[0] > found[1]).mean() > 0.9
        exact[precision] = found
    difference = np.abs(exact["float32"] - exact["bfloat16"])
    assert 0 < difference.max() < 0.03
    assert difference.mean() < 0.008


def test_bfloat16_does_not_depend_on_neighbours_either(model: Path) -> None:
    clip = clip_model(model, precision="bfloat16")
    together = scores(clip, PAIRS)
    assert [scores(clip, [pair])[0] for pair in PAIRS] == together
    assert clip.numeric.startswith(("cpu-bfloat16-torch", "cuda-bfloat16-torch"))


def test_bfloat16_scores_are_those_of_open_clip_cast_to_it(model: Path) -> None:
    """How activations are laid out, for speed, changes nothing but rounding."""
    import open_clip

    network, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{model}")
    network = network.to(torch.bfloat16)
    tokenize = open_clip.get_tokenizer(f"local-dir:{model}")
    expected = []
    for pair in PAIRS:
        with torch.inference_mode(), Image.open(io.BytesIO(pair.image)) as image:
            pixels = preprocess(image.convert("RGB"))[None].to(torch.bfloat16)
            features = network.encode_image(pixels), network.encode_text(tokenize([pair.caption]))
            cosine = torch.nn.functional.cosine_similarity(*(item.float() for item in features))
            expected.append(float(cosine))
    found = scores(clip_model(model, precision="bfloat16"), PAIRS)
    assert found == pytest.approx(expected, abs=5e-3)
    changed: Any = clip_model(model, precision="bfloat16").load().network
    assert changed.transformer.batch_first is False


def test_a_score_that_is_no_number_is_null(tmp_path: Path) -> None:
    broken = clip_model(write_model(tmp_path / "broken", broken=True))
    assert scores(broken, PAIRS[:2]) == [None, None]
    assert np.isnan(embeddings(broken, PAIRS[:2])).all()


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    """As of a model that is opened anew."""
    return ClipSignal(clip_model(folder, **options)).settings()


def test_settings_are_the_files_not_their_place(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    first = settings(model)
    assert settings(copy) == first
    (copy / "README.md").write_text("notes")
    (copy / ".cache").write_text("hidden")
    assert settings(copy) == first
    assert settings(copy, batch_size=9) == first  # the environment, not the values
    (copy / "open_clip_config.json").write_text("{}")
    assert settings(copy) != first


def test_settings_name_a_precision_that_changes_scores(model: Path) -> None:
    assert settings(model, precision="bfloat16") == {**settings(model), "precision": "bfloat16"}


def test_settings_of_a_checkpoint_file_are_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"one")
    clip = ClipSettings(model="ViT-B-32", pretrained="weights.pt")
    first = ClipModel(clip, root=str(tmp_path)).settings
    file.write_bytes(b"two")
    second = ClipModel(clip, root=str(tmp_path)).settings
    assert first["model"] == second["model"] == "ViT-B-32"
    assert first["pretrained"] != second["pretrained"]
    tag = ClipModel(clip.model_copy(update={"pretrained": "openai"}), root=str(tmp_path))
    assert tag.settings == {"model": "ViT-B-32", "pretrained": "openai"}


def test_opening_signals_and_their_settings_loads_no_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"looked at later")
    signals = {
        "clip": {"model": f"local-dir:{model}"},
        "embedding": {},
        "nsfw": {"weights": str(tmp_path / "head.safetensors")},
        "texture": {},
        "language": {"among": ["en", "de"]},
    }
    code = (
        "import sys\n"
        "from pipeline.signals import open_signals\n"
        "from schemas.declaration import Declaration\n"
        "from schemas.storage import Store\n"
        "declaration = Declaration.model_validate({'sources': [{'name': 'a', 'urls': 'x'}],\n"
        f"    'signals': {signals!r}}})\n"
        "found = [item.settings() for item in open_signals(declaration, Store('/'))]\n"
        "assert len(found) == 7\n"
        "print({'torch', 'open_clip', 'ray'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_relative_folder_starts_at_the_corpus(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "models" / "small")
    declaration = declare(signals={"clip": {"model": "local-dir:models/small"}})
    *_, clip = open_signals(declaration, Store(tmp_path))
    assert clip.schema.name == "clip"
    assert clip.settings() == settings(model)


def test_a_missing_folder_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        settings(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"has no open_clip_config\.json"):
        clip_model(tmp_path).load()


def test_a_damaged_weight_file_is_a_source_error(model: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(model, tmp_path / "damaged")
    cut_file(damaged / WEIGHTS, 1000)
    with pytest.raises(SourceError, match="cannot load"):
        clip_model(damaged).load()
    (damaged / WEIGHTS).unlink()
    with pytest.raises(SourceError, match="cannot load"):
        clip_model(damaged).load()


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
        ClipModel(ClipSettings(model=name, pretrained=pretrained)).load()


def test_a_damaged_image_is_named(model: Path) -> None:
    with pytest.raises(CorruptShardError, match="cannot be decoded") as caught:
        look(clip_model(model), [PAIRS[0], Pair("broken", b"no image", "")])
    assert caught.value.key == "broken"
