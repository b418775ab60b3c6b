"""Downloads the URLs of one shard through img2dataset's `Downloader`.

img2dataset brings the thread pool, its back-pressure and its loop; its seams take our opener (what
may be fetched, and how long it may take), our resizer (what is an image) and our writer (what is
kept of it). One download a process at a time: urllib's opener belongs to the process.

The caller compares what comes back with what it asked for: `Downloader` prints late exceptions and
goes on, and the row of such an image is in no result.
"""

import dataclasses
import io
import logging
import os
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.failures import parse_failure
from pipeline.images import prepare_image
from pipeline.opener import SafeOpener
from pipeline.outcomes import Outcome, Prepare, WaitingRoom, failed, receive
from schemas.declaration import Fetch, Images
from schemas.errors import PixeleseError
from schemas.storage import storage_errors

_ONE_AT_A_TIME = threading.Lock()

log = logging.getLogger(__name__)


def download(
    urls: Mapping[str, str],
    *,
    fetch: Fetch,
    images: Images,
    folder: Path,
    room: WaitingRoom,
    prepare: Prepare = prepare_image,
) -> dict[str, Outcome]:
    """Fetches URLs, each once.

    Args:
        urls: `fetch_id` -> URL.
        fetch: limits of requests.
        images: limits of images, and how they are stored.
        folder: an empty local folder for img2dataset's own files.
        room: takes the stored images.
        prepare: makes the stored form of an image.

    Returns:
        `fetch_id` -> outcome. One that img2dataset lost is missing.

    Raises:
        StorageError: no space, or the scratch folder cannot be written.
    """
    if not urls:
        return {}
    fetch_ids = list(urls)
    task = folder / "urls.arrow"
    _write_task(task, [urls[fetch_id] for fetch_id in fetch_ids])
    with _ONE_AT_A_TIME, _installed(SafeOpener(fetch)) as opener:
        collector = _Collector(opener=opener, images=images, room=room, prepare=prepare)
        downloader = _downloader(collector, fetch, folder, len(fetch_ids))
        # Not its __call__, which turns every exception into a printed line.
        with storage_errors("write", str(folder)):
            downloader.download_shard((0, str(task)))
        if collector.error is not None:
            raise collector.error
    return {fetch_ids[place]: outcome for place, outcome in collector.outcomes.items()}


class _Collector:
    """Resizer and writer of one download: turns what arrives into outcomes.

    Both are called by the downloader's own thread, one image after the other.
    """

    def __init__(
        self, *, opener: SafeOpener, images: Images, room: WaitingRoom, prepare: Prepare
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        """By place in the list of URLs."""
        self.error: PixeleseError | None = None
        """What ends the whole shard, such as a full disk."""
        self._opener = opener
        self._images = images
        self._room = room
        self._prepare = prepare

    def resize(self, stream: io.BytesIO, blurring_bbox_list: None = None) -> tuple[Any, ...]:
        """img2dataset's resizer: (image, width, height, original width and height, error).

        The image is an Outcome, and there is never an error: a refused image has more to tell than
        a message, and the writer takes whatever comes.
        """
        try:
            outcome = receive(stream.getvalue(), self._images, self._room, prepare=self._prepare)
        except PixeleseError as error:
            # The downloader would print it and go on with a full disk, losing row after row.
            self.error = self.error or error
            self._opener.stop()
            raise
        return outcome, None, None, None, None, None

    def writer(self, *_: Any) -> "_Collector":
        """img2dataset's writer class."""
        return self

    def write(self, image: Outcome | None, key: str, caption: None, meta: dict[str, Any]) -> None:
        """Takes one result. `key` is the place in the list."""
        facts = self._opener.facts(meta["url"])
        if image is None:
            outcome = failed(parse_failure(meta["error_message"]))
        elif facts is None:
            outcome = image
        else:
            outcome = dataclasses.replace(
                image, attempts=facts.attempts, http_status=facts.http_status
            )
        log.debug("fetched url=%s state=%s reason=%s", meta["url"], outcome.state, outcome.reason)
        self.outcomes[int(key)] = outcome

    def close(self) -> None:
        """img2dataset's writer: nothing is open."""


def _downloader(collector: _Collector, fetch: Fetch, folder: Path, num_urls: int) -> Any:
    # Importing it (3 s) asks a package index for news and starts wandb unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")
    from img2dataset.downloader import Downloader

    return Downloader(
        sample_writer_class=collector.writer,
        resizer=collector.resize,
        thread_count=min(fetch.num_threads, num_urls),
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url"],
        timeout=fetch.timeout_seconds,
        number_sample_per_shard=max(2, num_urls),
        oom_shard_count=1,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,  # its retries do not wait: the opener's do
        user_agent_token=None,
        disallowed_header_directives=None,  # it misses `none`: the opener does not
    )


def _write_task(path: Path, urls: list[str]) -> None:
    table = pa.table({"url": pa.array(urls, pa.string())})
    with storage_errors("write", str(path)), pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


@contextmanager
def _installed(opener: SafeOpener) -> Iterator[SafeOpener]:
    """Makes an opener the process' own for a while."""
    before = urllib.request._opener  # type: ignore[attr-defined]
    urllib.request.install_opener(opener)
    try:
        yield opener
    finally:
        urllib.request.install_opener(before)
        opener.close()
