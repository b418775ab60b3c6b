"""An artifact is read back equal, or refused by the name of what is wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from schemas.errors import ArtifactError, StorageError
from tokenizer.artifact import read_config, read_fingerprint, save_artifact
from tokenizer.encoder import Encoder
from tokenizer.model import load_head, load_model, model_arrays

Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def copied(artifact: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copied"))


def save_again(url: str, output: str, **changes: Any) -> str:
    """Saves a loaded artifact under another name, changed; returns its fingerprint."""
    found, _, model = load_model(url)
    arrays = model_arrays(model)
    edit: Callable[[Tensors], None] = changes.pop("edit", lambda arrays: None)
    arrays = {name: array.copy() for name, array in arrays.items()}
    edit(arrays)
    folder = Path(url) / "encoder"
    config = replace(found.config, **changes)
    return save_artifact(
        output, config=config, tensors=arrays, card=found.card, encoder_folder=folder
    ).fingerprint


def test_saved_again_it_is_the_same(artifact: str, tmp_path: Path) -> None:
    output = os.fspath(tmp_path / "again")
    assert save_again(artifact, output) == read_fingerprint(artifact)
    first, _, model = load_model(artifact)
    again, _, other = load_model(output)
    assert first.config == again.config
    for name, array in model_arrays(model).items():
        assert np.array_equal(array, model_arrays(other)[name]), name


def test_carries_its_encoder_and_knows_no_absolute_path(artifact: str, copied: Path) -> None:
    text = (copied / "config.json").read_text()
    assert json.loads(text)["encoder"]["model"] == "local-dir:encoder"
    assert os.fspath(Path(artifact).parent.parent) not in text
    assert isinstance(load_model(os.fspath(copied))[1], Encoder)


def test_fingerprint_is_of_what_decides_words(artifact: str, tmp_path: Path) -> None:
    original = read_fingerprint(artifact)
    config = load_model(artifact)[0].config

    def decoder(arrays: Tensors) -> None:
        arrays["decoder.queries"] += 1.0

    def codebook(arrays: Tensors) -> None:
        arrays["codebook.vectors"][[0, 1]] = arrays["codebook.vectors"][[1, 0]]

    def saved(name: str, **changes: Any) -> str:
        return save_again(artifact, os.fspath(tmp_path / name), **changes)

    assert saved("decoder", edit=decoder) == original
    named = replace(config.encoder, model="local-dir:../somewhere")
    assert saved("named", encoder=named) == original
    assert saved("codebook", edit=codebook) != original
    assert saved("tau", decision=replace(config.decision, tau=0.123)) != original
    size = replace(config.preprocess, mean=(0.1, 0.1, 0.1))
    assert saved("mean", preprocess=size) != original
    layer = replace(config.encoder, feature_layer=-1)
    assert saved("layer", encoder=layer) != original


def alter(name: str, change: Callable[[Tensors], None]) -> Any:
    return pytest.param(change, name, id=name.replace(" ", "-"))


def _missing(arrays: Tensors) -> None:
    del arrays["merger.norm.weight"]


def _unexpected(arrays: Tensors) -> None:
    arrays["merger.extra"] = np.zeros(3, np.float32)


def _misshapen(arrays: Tensors) -> None:
    arrays["selector.norm.bias"] = np.zeros((2, 32), np.float32)


def _nan(arrays: Tensors) -> None:
    arrays["codebook.vectors"][3, 1] = np.nan


def _altered(arrays: Tensors) -> None:
    arrays["code_proj.0.bias"][5] += 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        alter("'merger.norm.weight' is missing", _missing),
        alter("'merger.extra' .* unexpected", _unexpected),
        alter("'selector.norm.bias' has shape", _misshapen),
        alter("'codebook.vectors' holds NaN", _nan),
        alter("'code_proj.0.bias' was altered", _altered),
    ],
)
def test_wrong_weight_is_named(
    copied: Path, change: Callable[[Tensors], None], message: str
) -> None:
    path = copied / "model.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    with pytest.raises(ArtifactError, match=message):
        load_model(os.fspath(copied))
    with pytest.raises(ArtifactError, match=r"model\.safetensors was altered"):
        read_fingerprint(os.fspath(copied))


@pytest.fixture(scope="module")
def spoilt(artifact: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose files are spoilt and mended again."""
    return Path(shutil.copytree(artifact, tmp_path_factory.mktemp("spoilt") / "tokenizer"))


@given(
    name=st.sampled_from(
        [
            "config.json",
            "card.json",
            "model.safetensors",
            "encoder/open_clip_config.json",
            "encoder/open_clip_model.safetensors",
        ]
    ),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
@settings(max_examples=80, deadline=None)
def test_one_flipped_bit_anywhere_is_refused(
    spoilt: Path, name: str, place: float, bit: int
) -> None:
    path = spoilt / name
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(broken)
    try:
        for read in (load_head, read_fingerprint):
            with pytest.raises(ArtifactError, match=r"tokenizer: "):
                read(os.fspath(spoilt))
    finally:
        path.write_bytes(whole)


def test_mended_it_loads_again(artifact: str, spoilt: Path) -> None:
    """Or the test above refused what is whole."""
    assert read_fingerprint(os.fspath(spoilt)) == read_fingerprint(artifact)
    load_head(os.fspath(spoilt))


def test_every_file_is_recorded(artifact: str) -> None:
    folder = Path(artifact)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*read_config(folder, url=artifact).files}


def test_preprocessing_that_is_not_the_encoders_is_refused_by_its_field(
    artifact: str, tmp_path: Path
) -> None:
    config = load_head(artifact)[0].config
    changes: list[tuple[str, Any]] = [
        ("mean", (0.1, 0.1, 0.1)),
        ("deviation", (1.0, 1.0, 1.0)),
        ("image_size", 40),
    ]
    for name, value in changes:
        output = os.fspath(tmp_path / name)
        save_again(artifact, output, preprocess=replace(config.preprocess, **{name: value}))
        with pytest.raises(ArtifactError, match=rf"preprocess\.{name}"):
            load_model(output)


def _edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((folder / "config.json").read_text())
    change(value)
    (folder / "config.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format=99), "format 99"),
        (lambda v: v.pop("format"), "format None"),
        (lambda v: v["decision"].update(tau=0.25), "altered"),
        (lambda v: v["encoder_spec"].update(digest="0" * 64), "altered"),
        (lambda v: v["head"].update(num_heads=4), "altered"),
        (lambda v: v["encoder"].update(seed=7), "altered"),
        (lambda v: v["preprocess"].update(resize="crop"), "preprocess.*crop"),
        (lambda v: v["preprocess"].update(mean=[0.1, 0.2]), "preprocess.mean"),
        (lambda v: v["preprocess"].update(orientation="up"), "orientation"),
        (lambda v: v["preprocess"].pop("interpolation"), "interpolation"),
        (lambda v: v.update(note="hello"), "note"),
        (lambda v: v["head"].pop("positions"), "positions"),
    ],
)
def test_altered_config_is_refused(
    copied: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _edit_config(copied, change)
    for read in (read_fingerprint, load_model):
        with pytest.raises(ArtifactError, match=message):
            read(os.fspath(copied))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("model.safetensors", None),
        ("model.safetensors", b"short"),
        ("card.json", None),
        ("card.json", b"\xff"),
        ("encoder/open_clip_model.safetensors", None),
        ("encoder/open_clip_config.json", b"{}"),
    ],
)
def test_missing_or_broken_file_is_named(copied: Path, name: str, content: bytes | None) -> None:
    path = copied / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=Path(name).name):
        load_model(os.fspath(copied))


def test_another_encoder_is_refused(
    copied: Path, tmp_path: Path, make_clip_folder: Callable[..., Path]
) -> None:
    other = make_clip_folder(tmp_path / "other", seed=1)
    shutil.rmtree(copied / "encoder")
    shutil.copytree(other, copied / "encoder")
    with pytest.raises(ArtifactError, match="encoder"):
        load_model(os.fspath(copied))


def test_weights_are_as_readable_as_the_config(artifact: str) -> None:
    modes = {Path(artifact, name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_missing_folder_is_said(tmp_path: Path) -> None:
    for read in (read_fingerprint, load_model):
        with pytest.raises(ArtifactError, match="no such tokenizer folder"):
            read(os.fspath(tmp_path / "nothing"))


def test_is_never_overwritten(artifact: str) -> None:
    before = read_fingerprint(artifact)
    with pytest.raises(ArtifactError, match="never overwritten"):
        save_again(artifact, artifact)
    assert read_fingerprint(artifact) == before


def test_not_finite_is_not_saved(artifact: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"codebook\.vectors"):
        save_again(artifact, os.fspath(tmp_path / "nan"), edit=_nan)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_nothing(artifact: str, tmp_path: Path) -> None:
    found, _, model = load_model(artifact)
    with pytest.raises(StorageError, match="cannot be written"):
        save_artifact(
            os.fspath(tmp_path / "deep" / "out"),
            config=found.config,
            tensors=model_arrays(model),
            card={},
            encoder_folder=tmp_path / "gone",
        )
    assert list((tmp_path / "deep").iterdir()) == []


def test_relative_encoder_is_found_beside_the_artifact(
    artifact: str, clip_folder: Path, tmp_path: Path
) -> None:
    found, _, model = load_model(artifact)
    shutil.copytree(clip_folder, tmp_path / "small-clip")
    output = os.fspath(tmp_path / "tokenizer")
    encoder = replace(found.config.encoder, model="local-dir:../small-clip")
    save_artifact(
        output,
        config=replace(found.config, encoder=encoder),
        tensors=model_arrays(model),
        card={"note": "kept"},
    )
    assert not (tmp_path / "tokenizer" / "encoder").exists()
    again, _, _ = load_model(output)
    assert again.card == {"note": "kept"}
    assert again.config.fingerprint == read_fingerprint(artifact)


def test_remote_folder_loads_and_saves(artifact: str) -> None:
    filesystem = fsspec.filesystem("memory")
    save_again_remote(artifact, "memory://bucket/tokenizer")
    assert filesystem.exists("/bucket/tokenizer/config.json")
    assert read_fingerprint("memory://bucket/tokenizer") == read_fingerprint(artifact)
    assert read_fingerprint("memory://bucket/tokenizer", verify=False)
    found, encoder, _ = load_model("memory://bucket/tokenizer")
    assert encoder.spec == found.config.encoder_spec
    filesystem.rm("/bucket", recursive=True)


def save_again_remote(url: str, output: str) -> None:
    assert save_again(url, output) == read_fingerprint(url)
    with pytest.raises(ArtifactError, match="never overwritten"):
        save_again(url, output)


def test_fingerprint_is_read_without_torch(artifact: str) -> None:
    code = (
        "import sys; from tokenizer.artifact import read_fingerprint; "
        "print(read_fingerprint(sys.argv[1]), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, artifact],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == [read_fingerprint(artifact), "False"]
