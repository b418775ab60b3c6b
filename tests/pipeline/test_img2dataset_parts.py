"""A fetch worker gets the downloader, and not what its package brings along."""

import subprocess
import sys

CODE = """
import sys
from pipeline.img2dataset_parts import downloader_class
found = downloader_class()
assert found is downloader_class()
assert found.__module__ == "img2dataset.downloader"
heavy = {"torch", "albumentations", "pandas", "img2dataset"} & set(sys.modules)
assert not heavy, heavy
"""


def test_nothing_heavy_is_imported() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=60)
