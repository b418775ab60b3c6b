"""Settings of every test process, and the fixtures that all of them share.

The environment is set before anything is imported, because libraries read it only then: Ray without
a token or usage reports, no look-up on the network, one tokenizer thread. Object storage is a real
S3 server on loopback (moto), which costs a session that uses it about a second.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.update(
    {
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
BUCKET = "corpora"
REGION = "eu-west-1"  # a bucket made in S3's default region is refused by the client's own check

settings.register_profile("default", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile(
    "nightly", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "default")
)


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
    import boto3
    import fsspec
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # fsspec reads its variables when it is imported, which may have been long ago.
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        client.close()
        yield f"s3://{BUCKET}/root"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
