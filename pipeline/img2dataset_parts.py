"""img2dataset's `Downloader` without the rest of its package.

`import img2dataset` brings torch, albumentations, pandas and a package-index request with it: 3.5 s
of a core and 720 MB a worker. The two modules that a download needs take 0.7 s and 90 MB.
"""

import importlib.util
import os
import sys
import types
from functools import cache
from typing import Any

PACKAGE = "img2dataset"


@cache
def downloader_class() -> Any:
    """The class `img2dataset.downloader.Downloader`."""
    os.environ.setdefault("WANDB_MODE", "disabled")  # its logger imports wandb, and never calls it
    if PACKAGE in sys.modules:
        from img2dataset.downloader import Downloader

        return Downloader
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    bare = types.ModuleType(PACKAGE)
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[PACKAGE] = bare
    try:
        from img2dataset.downloader import Downloader
    finally:
        # Whoever wants the package later gets the whole of it.
        del sys.modules[PACKAGE]
    return Downloader
