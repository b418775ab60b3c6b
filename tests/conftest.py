"""Settings of every test process, and the fixtures that all of them share.

The environment is set before anything is imported, because libraries read it only then: Ray without
a token or usage reports, no look-up on the network, one tokenizer thread. Object storage is a real
S3 server on loopback (moto), which costs a session that uses it about a second.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.s3 import SETTINGS

os.environ.update(
    {
        **SETTINGS,
        # Where this process and its children read which S3 server there is.
        "FSSPEC_CONFIG_DIR": tempfile.mkdtemp(prefix="pixelese-tests-"),
        "HF_HUB_OFFLINE": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

atexit.register(shutil.rmtree, os.environ["FSSPEC_CONFIG_DIR"], ignore_errors=True)

# The same examples every time: a change is judged by what it changes. `nightly` looks further.
settings.register_profile("default", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile(
    "nightly", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "default")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first, or at the end one core would wait for the other."""
    ranks: dict[Path, int] = {}
    for item in items:
        rank = 0 if item.get_closest_marker("slow") else 1 if item.get_closest_marker("ray") else 2
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the sample data beside the checkout; skips where it is missing."""
    folder = (ROOT / ".." / "shared").resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"no sample data at {folder}")
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A root URL on an S3 server on loopback, for this process and for those it starts."""
    from tests.s3.server import serve_s3

    with serve_s3() as root:
        yield root
