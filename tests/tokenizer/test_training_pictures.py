"""A page shows how pictures come out of the codes, at every stage of a training."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.tokenizer.test_training_resume import SHORT, run
from tokenizer.config import TokenizerConfig
from tokenizer.pictures import SHEET_SIDE


@pytest.mark.parametrize("pixel_width", [0, 8])
def test_sheets_are_drawn_on_time_and_shown_newest_first(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path, pixel_width: int
) -> None:
    config = replace(small_config, head=replace(small_config.head, pixel_width=pixel_width))
    settings = replace(SHORT, pictures_every_steps=8, pixel_images=4)
    run(images[:20], config, tmp_path / "out", settings=settings)
    folder = tmp_path / "out.training"
    page = (folder / "pictures.html").read_text()
    shown = re.findall(r'src="(.+?)"', page)
    assert shown == [f"pictures/step-000000{step}.jpg" for step in (20, 16, "08")]
    strips = 3 if pixel_width else 2
    for name in shown:
        with Image.open(folder / name) as sheet:
            assert sheet.width > 2 * strips * SHEET_SIDE
            assert sheet.width < 2 * (strips + 1) * SHEET_SIDE


def test_sheets_of_steps_that_come_again_are_dropped(
    small_config: TokenizerConfig, images: list[bytes], tmp_path: Path
) -> None:
    settings = replace(SHORT, pictures_every_steps=4)
    run(images[:20], small_config, tmp_path / "out", settings=settings, stop_after=6)
    sheets = tmp_path / "out.training" / "pictures"
    assert os.listdir(sheets) == ["step-00000004.jpg"]
    (sheets / "step-00000012.jpg").write_bytes(b"of an attempt that was killed")
    run(images[:20], small_config, tmp_path / "out", settings=settings, stop_after=4, resume=True)
    assert sorted(os.listdir(sheets)) == ["step-00000004.jpg", "step-00000008.jpg"]
