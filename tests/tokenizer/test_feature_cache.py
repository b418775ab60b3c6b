"""Features on disk are computed once, whatever happens in between, and checked before use."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schemas.errors import StorageError
from tokenizer import feature_cache
from tokenizer.config import EncoderConfig
from tokenizer.encoder import Encoder
from tokenizer.features import FeatureSource

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 30


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "BLOCK_IMAGES", 4)


class CountedEncoder:
    """An encoder that counts the images it gets, and stops after some."""

    def __init__(self, encoder: Encoder, *, most: int = 1_000_000) -> None:
        self.encoder, self.most = encoder, most
        self.config, self.spec, self.preprocess = encoder.config, encoder.spec, encoder.preprocess
        self.seen = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.seen + len(pixels) > self.most:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        found: torch.Tensor = self.encoder(pixels)
        return found


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> Encoder:
    return Encoder.load(EncoderConfig(model=f"local-dir:{clip_folder}"))


def source(
    images: list[bytes],
    encoder: object,
    folder: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureSource:
    return FeatureSource(
        images[:NUM_IMAGES],
        encoder,  # type: ignore[arg-type]
        batch_size=8,
        cache_bytes=0,
        statistics_images=20,
        device="cpu",
        folder=os.fspath(folder),
        progress=progress,
    )


def test_one_pass_serves_many_trainings(
    images: list[bytes], encoder: Encoder, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    counted = CountedEncoder(encoder)
    first = source(images, counted, tmp_path, progress=lambda *done: told.append(done))
    assert counted.seen == NUM_IMAGES
    assert told[0] == (4, 30)
    assert told[7] == (30, 30)
    nothing = CountedEncoder(encoder, most=0)
    second = source(images, nothing, tmp_path)
    everything = torch.arange(NUM_IMAGES)
    assert torch.equal(first(everything), second(everything))
    assert torch.equal(first.mean, second.mean)
    plain = FeatureSource(
        images[:NUM_IMAGES],
        encoder,
        batch_size=8,
        cache_bytes=1 << 30,
        statistics_images=20,
        device="cpu",
    )
    torch.testing.assert_close(second(everything), plain(everything), rtol=2e-3, atol=2e-3)
    assert second.digest == plain.digest


def test_a_pass_that_was_interrupted_goes_on(
    images: list[bytes], encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        source(images, CountedEncoder(encoder, most=13), tmp_path / "parts")
    (folder,) = (tmp_path / "parts").iterdir()
    assert not (folder / "cache.json").exists()
    with open(folder / "blocks-0.jsonl", "a") as journal:
        journal.write('{"block": 3, "sha')  # killed while it wrote a note
    counted = CountedEncoder(encoder)
    found = source(images, counted, tmp_path / "parts")
    assert counted.seen == NUM_IMAGES - 12, "three blocks of four were done"
    whole = source(images, encoder, tmp_path / "whole")
    assert torch.equal(found(torch.arange(NUM_IMAGES)), whole(torch.arange(NUM_IMAGES)))
    (other,) = (tmp_path / "whole").iterdir()
    assert (folder / "cache.json").read_bytes() == (other / "cache.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"cache.json", "features.f16", "lock"}


def test_a_block_that_never_reached_the_disk_is_computed_again(
    images: list[bytes], encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        source(images, CountedEncoder(encoder, most=13), tmp_path)
    (folder,) = tmp_path.iterdir()
    with open(folder / "features.f16", "r+b") as file:
        file.seek(4 * 64 * 64 * 2)
        file.write(bytes(100))
    counted = CountedEncoder(encoder)
    source(images, counted, tmp_path)
    assert counted.seen == NUM_IMAGES - 8


def test_other_images_layers_and_encoders_have_other_caches(
    images: list[bytes], encoder: Encoder, tmp_path: Path, make_clip_folder: Callable[..., Path]
) -> None:
    source(images, encoder, tmp_path)
    other_layer = Encoder.load(replace(encoder.config, feature_layer=-1))
    other_clip = make_clip_folder(tmp_path / "clip" / "other", seed=1)
    other_weights = Encoder.load(EncoderConfig(model=f"local-dir:{other_clip}"))
    caches = tmp_path / "caches"
    source(images, encoder, caches)
    source(images[1:], encoder, caches)
    source(images, other_layer, caches)
    source(images, other_weights, caches)
    assert len(list(caches.iterdir())) == 4


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "features.f16").unlink(), "has 0 bytes in place of"),
        (lambda folder: os.truncate(folder / "features.f16", 1000), "has 1000 bytes"),
        (lambda folder: flip(folder / "features.f16", 5 * 64 * 64 * 2), "damaged in block 1"),
        (lambda folder: flip(folder / "cache.json", 40), "cache.json (is damaged|was altered)"),
        (lambda folder: (folder / "cache.json").write_text("{}"), "cache.json is damaged"),
    ],
    ids=["missing", "short", "flipped", "header", "empty-header"],
)
def test_a_damaged_cache_is_refused(
    images: list[bytes],
    encoder: Encoder,
    tmp_path: Path,
    damage: Callable[[Path], None],
    told: str,
) -> None:
    source(images, encoder, tmp_path)
    (folder,) = tmp_path.iterdir()
    damage(folder)
    with pytest.raises(StorageError, match=told):
        source(images, encoder, tmp_path)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_bucket_cannot_be_memory_mapped(images: list[bytes], encoder: Encoder) -> None:
    with pytest.raises(StorageError, match="cannot be memory-mapped"):
        source(images, encoder, "memory://bucket/cache")


def test_another_training_waits_for_the_one_that_builds(
    images: list[bytes], encoder: Encoder, tmp_path: Path, clip_folder: Path
) -> None:
    """Two at once: both train, and every feature was computed once."""
    source(images, encoder, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "cache.json").rename(tmp_path / "kept.json")
    code = (
        "import fcntl, sys, os; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.readline(); os.rename(sys.argv[2], sys.argv[3])"
    )
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            folder / "lock",
            tmp_path / "kept.json",
            folder / "cache.json",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    nothing = CountedEncoder(encoder, most=0)

    class Release:
        """Lets go when the wait is said."""

        def __call__(self, record: object) -> bool:
            assert holder.stdin is not None
            holder.stdin.write("go\n")
            holder.stdin.flush()
            return True

    release = Release()
    logger = feature_cache._logger
    level = logger.level
    logger.addFilter(release)
    logger.setLevel("INFO")
    try:
        source(images, nothing, tmp_path)
    finally:
        logger.removeFilter(release)
        logger.setLevel(level)
    assert holder.wait(timeout=60) == 0
    assert json.loads((folder / "cache.json").read_text())["digest"]
