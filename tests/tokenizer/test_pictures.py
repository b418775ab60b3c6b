"""Pictures show what codes say: the same whoever is drawn beside, and refused where they cannot."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import ArtifactError
from tokenizer.config import PreprocessConfig
from tokenizer.model import load_head
from tokenizer.pictures import SHEET_SIDE, CodeDrawer, sheet, to_rgb
from tokenizer.preprocess import decode_images, normalize_pixels
from tokenizer.tokenize import DynamicTokenizer

PREPROCESS = PreprocessConfig(image_size=32, mean=(0.4, 0.5, 0.6), deviation=(0.2, 0.25, 0.3))


def test_rgb_undoes_preprocessing(images: list[bytes]) -> None:
    pixels = decode_images(images[:4], image_size=32)
    assert (to_rgb(normalize_pixels(pixels, config=PREPROCESS), PREPROCESS) == pixels).all()
    beyond = torch.full((1, 3, 32, 32), 9.0)
    assert (to_rgb(beyond, PREPROCESS) == 255).all()
    assert (to_rgb(-beyond, PREPROCESS) == 0).all()


def test_codes_are_drawn_alike_alone_and_in_company(
    drawing_artifact: str, images: list[bytes]
) -> None:
    keep_mask, codes = DynamicTokenizer.load(drawing_artifact).encode_codes(images[:70])
    drawer = CodeDrawer.load(drawing_artifact)
    together = drawer.draw(keep_mask, codes)
    assert together.shape == (70, 32, 32, 3)
    assert together.dtype == np.uint8
    bounds = np.concatenate([[0], np.cumsum(keep_mask.sum(axis=1))])
    for row in (0, 33, 69):  # the last is in the second batch
        alone = drawer.draw(keep_mask[row : row + 1], codes[bounds[row] : bounds[row + 1]])[0]
        assert np.abs(alone.astype(int) - together[row].astype(int)).max() <= 1


def test_what_is_drawn_is_nearer_to_its_own_image_than_to_others(
    drawing_artifact: str, images: list[bytes]
) -> None:
    tokenizer = DynamicTokenizer.load(drawing_artifact)
    drawn = CodeDrawer.load(drawing_artifact).draw(*tokenizer.encode_codes(images[:48]))
    originals = decode_images(images[:48], image_size=32)
    distances = np.abs(drawn[:, None].astype(float) - originals[None]).mean(axis=(2, 3, 4))
    assert distances.diagonal().mean() < 0.8 * distances.mean()


def test_no_image_gives_no_picture(drawing_artifact: str) -> None:
    nothing = CodeDrawer.load(drawing_artifact).draw(np.zeros((0, 64), bool), np.zeros(0, np.int64))
    assert nothing.shape == (0, 32, 32, 3)


def test_what_cannot_draw_is_told(artifact: str, drawing_artifact: str, tmp_path: Path) -> None:
    fingerprint = DynamicTokenizer.load(artifact).fingerprint
    assert CodeDrawer.load(drawing_artifact, fingerprint=fingerprint).grid == 8
    with pytest.raises(ArtifactError, match="has no pixel decoder"):
        CodeDrawer.load(artifact, fingerprint=fingerprint)
    with pytest.raises(ArtifactError, match="were written by 0123"):
        CodeDrawer.load(drawing_artifact, fingerprint="0123" * 16)
    with pytest.raises(ArtifactError, match="no such tokenizer folder"):
        CodeDrawer.load(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="no pixel decoder"):
        CodeDrawer(load_head(artifact)[1], PREPROCESS)


def test_a_sheet_shows_original_kept_patches_and_drawing(images: list[bytes]) -> None:
    originals = decode_images(images[:3], image_size=32)
    keep_mask = np.zeros((3, 64), bool)
    keep_mask[:, 0] = True
    drawn = np.full_like(originals, 7)
    page = sheet(originals, keep_mask, drawn, num_columns=2)
    assert page.dtype == np.uint8
    assert page.shape[0] > 2 * SHEET_SIDE
    assert page.shape[1] > 6 * SHEET_SIDE
    left = page[:SHEET_SIDE, :SHEET_SIDE]
    kept = page[:SHEET_SIDE, SHEET_SIDE + 2 : 2 * SHEET_SIDE + 2]
    last = page[:SHEET_SIDE, 2 * SHEET_SIDE + 4 : 3 * SHEET_SIDE + 4]
    assert (last == 7).all()
    inside, outside = np.s_[3:12, 3:12], np.s_[40:, 40:]  # the first patch is 16 pixels wide
    assert (kept[inside] == left[inside]).all()
    assert kept[outside].std() < left[outside].std()
    narrow = sheet(originals, keep_mask, None, num_columns=2)
    assert narrow.shape[1] < page.shape[1]


def test_a_picture_of_any_encoder_fits_its_preprocessing(drawing_artifact: str) -> None:
    _, model = load_head(drawing_artifact)
    preprocess = replace(PREPROCESS, mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0))
    mask = np.zeros((1, 64), bool)
    mask[0, 5] = True
    one = CodeDrawer(model.eval(), PREPROCESS).draw(mask, np.array([3]))
    other = CodeDrawer(model.eval(), preprocess).draw(mask, np.array([3]))
    assert (one != other).any()
