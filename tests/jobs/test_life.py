"""A short life of a corpus under kills; `make chaos` lives a long one."""

from pathlib import Path

import pytest

from schemas.storage import CACHE_VARIABLE
from tests.chaos import life
from tests.jobs.conftest import Tokenizers

NUM_ROWS = 16


@pytest.mark.ray
@pytest.mark.slow
def test_however_often_it_is_killed_every_digest_is_the_undisturbed_one(
    tmp_path: Path, tokenizers: Tokenizers, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    kills = {"local": 5, "s3": 4}
    results = life.run(
        tmp_path / "lives",
        tokenizers,
        kills=kills,
        steps=("encode", "recode", "remove", "gc"),
        num_rows=NUM_ROWS,
        seed=2,
        s3=s3,
    )
    # A step that is through before its kill comes passes it on; the last may be one, too.
    assert all(len(result.kills) >= kills[result.where] - 2 for result in results)
    assert results[1].num_faults
