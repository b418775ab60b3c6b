"""A real S3 server on loopback (moto), and the settings by which this process and those that it
starts find it. A start takes about a second.

Processes find it by a file of settings (FSSPEC_CONFIG_DIR), so that also workers which are started
by a Ray that was there before the server do.

It does one request after the other, once all of it has come. moto by itself looks whether a name is
taken and takes it in two steps, and lists names while other threads add some; S3 does neither.
"""

import contextlib
import io
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.s3 import REGION, SETTINGS

BUCKET = "corpora"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextlib.contextmanager
def serve_s3() -> Iterator[str]:
    """Runs the server for a while; gives a root URL in its only bucket."""
    import boto3
    import s3fs
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = _one_by_one(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        if "FSSPEC_CONFIG_DIR" not in os.environ:
            patch.setenv("FSSPEC_CONFIG_DIR", folder)
        patch.setitem(fsspec.config.conf, "s3", {})
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        client.close()
        with leading_to(endpoint):
            yield f"s3://{BUCKET}/root"
        s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def leading_to(endpoint: str) -> Iterator[None]:
    """Makes `s3://` mean the server at `endpoint` while the block runs, here and in processes that
    are started meanwhile."""
    settings = {**fsspec.config.conf.get("s3", {}), "endpoint_url": endpoint}
    file = Path(os.environ["FSSPEC_CONFIG_DIR"]) / "s3.json"
    before = file.read_text() if file.exists() else "{}"
    file.write_text(json.dumps({"s3": settings}))
    with pytest.MonkeyPatch.context() as patch:
        # fsspec reads its settings when it is imported, which may have been long ago.
        patch.setitem(fsspec.config.conf, "s3", settings)
        yield
    file.write_text(before)


def endpoint_url() -> str:
    """Where `s3://` leads now."""
    return str(fsspec.config.conf["s3"]["endpoint_url"])


def _one_by_one(application: Application) -> Application:
    lock = threading.Lock()

    def locked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH")
        if length:
            data = environ["wsgi.input"].read(int(length))
            if len(data) < int(length):  # the client is gone
                start_response("400 Bad Request", [("Content-Length", "0")])
                return []
            environ["wsgi.input"] = io.BytesIO(data)
        with lock:
            return list(application(environ, start_response))

    return locked
