"""A short life of a corpus under kills; `make chaos` lives a long one, on an object store too."""

from pathlib import Path

import pytest

from tests.chaos import life
from tests.jobs.conftest import Tokenizers

NUM_ROWS = 16


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_however_often_it_is_killed_every_digest_is_the_undisturbed_one(
    tmp_path: Path, tokenizers: Tokenizers
) -> None:
    (result,) = life.run(
        tmp_path / "lives",
        tokenizers,
        kills={"local": 4},
        steps=("encode", "recode"),
        num_rows=NUM_ROWS,
        seed=2,
        s3=None,
    )
    # A step that is through before its kill comes passes it on; the last may be one, too.
    assert len(result.kills) >= 2
