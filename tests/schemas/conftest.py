"""One store on disk and one on S3: what is promised of a store is promised of both."""

import uuid
from pathlib import Path

import pytest

from schemas.storage import CACHE_VARIABLE, Store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, with a cache of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    if request.param == "local":
        return Store(tmp_path / "corpus")
    return Store(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


@pytest.fixture
def remote(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store on S3, with a cache of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return Store(f"{s3}/{uuid.uuid4().hex}")
