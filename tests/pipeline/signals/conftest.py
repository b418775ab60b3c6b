"""One torch thread, as in a worker, and a small CLIP that all tests of a module share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pipeline.signals.models import write_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small CLIP; not to be changed."""
    return write_model(tmp_path_factory.mktemp("clip") / "model")
