"""Downloads the URLs of one shard through img2dataset's `Downloader`.

img2dataset brings the thread pool, its back-pressure and its loop; its seams take our opener (what
may be fetched, and how long it may take), our resizer (what is an image) and our writer (what is
kept of it). The resizer only hands an image to the decoder's process, so that the loop goes on; the
outcomes are gathered at the end. One download a process at a time: urllib's opener belongs to the
process.

Bytes in memory are bounded: each thread may hold the body it is reading, 128 MB may wait for the
loop, 64 MB for the decoder. The caller compares what comes back with what it asked for: where a
late exception remains, `Downloader` prints it and goes on, and its row is in no result.
"""

import dataclasses
import io
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.byte_budget import ByteBudget
from pipeline.failures import parse_failure
from pipeline.img2dataset_parts import downloader_class
from pipeline.opener import Reply, SafeOpener
from pipeline.outcomes import Outcome, failed
from pipeline.reception import Arrival, Reception
from schemas.declaration import Fetch
from schemas.errors import PixeleseError
from schemas.storage import storage_errors

MAX_WAITING_BYTES = 128 << 20
"""Bodies that have come and wait for img2dataset's loop."""
_ONE_AT_A_TIME = threading.Lock()


def download(
    urls: Mapping[str, str], *, fetch: Fetch, folder: Path, reception: Reception
) -> dict[str, Outcome]:
    """Fetches URLs, each once.

    Args:
        urls: `fetch_id` -> URL.
        fetch: limits of requests.
        folder: an empty local folder for img2dataset's own files.
        reception: takes the images.

    Returns:
        `fetch_id` -> outcome. One that img2dataset lost is missing.

    Raises:
        OutageError: fetching stopped, and the list is not at fault.
        StorageError: no space, or the scratch folder cannot be written.
        WorkerError: the decoder cannot be started.
    """
    if not urls:
        return {}
    opener = SafeOpener(fetch, refuse=reception.blocklist.of_url)
    with _ONE_AT_A_TIME, _installed(opener) as gate:
        collector = _Collector(gate, reception)
        for number, wanted in enumerate(gate.opener.rounds(urls.values())):
            task = folder / f"urls-{number}.arrow"
            _write_task(task, wanted)
            # Not its __call__, which turns every exception into a printed line.
            with storage_errors("write", str(folder)):
                _downloader(collector, fetch, folder, len(wanted)).download_shard((0, str(task)))
            if collector.error is not None:
                raise collector.error
        if gate.opener.outage is not None:
            raise gate.opener.outage
    reception.finish()
    outcomes = collector.outcomes()
    return {fetch_id: outcomes[url] for fetch_id, url in urls.items() if url in outcomes}


class _Gate:
    """The opener as urllib sees it: a body that has come waits here until there is room for it."""

    def __init__(self, opener: SafeOpener) -> None:
        self.opener = opener
        self._budget = ByteBudget(MAX_WAITING_BYTES)

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> Any:
        """urllib's entry."""
        body = self.opener.open(fullurl, data, timeout)
        num_bytes = body.seek(0, io.SEEK_END)
        body.seek(0)
        self._budget.take(fullurl.full_url, num_bytes)
        return body

    def leave(self, url: str) -> Reply | None:
        """Takes note that a URL's body has left the loop. How it came, if it came."""
        self._budget.give(url)
        return self.opener.facts(url)

    def stop(self) -> None:
        """Ends all requests and waits: the shard is lost anyway."""
        self.opener.stop()
        self._budget.open()

    def close(self) -> None:
        self.stop()
        self.opener.close()


class _Collector:
    """Resizer and writer of one download: turns what arrives into outcomes.

    Both are called by the downloader's own thread, one image after the other.
    """

    def __init__(self, gate: _Gate, reception: Reception) -> None:
        self.error: PixeleseError | None = None
        """What ends the whole shard, such as a full disk."""
        self._gate = gate
        self._reception = reception
        self._arrived: dict[str, tuple[Arrival, Reply | None]] = {}  # by URL

    def resize(self, stream: io.BytesIO, blurring_bbox_list: None = None) -> tuple[Any, ...]:
        """img2dataset's resizer: (image, width, height, original width and height, error).

        The image is what `write` takes, and there is never an error: a refused image has more to
        tell than a message.
        """
        with self._ending_on_error():
            return self._reception.take(stream.getvalue()), None, None, None, None, None

    def writer(self, *_: Any) -> "_Collector":
        """img2dataset's writer class."""
        return self

    def write(self, image: Arrival | None, key: str, caption: None, meta: dict[str, Any]) -> None:
        """Takes one result."""
        url = meta["url"]
        reply = self._gate.leave(url)
        if image is not None:
            self._arrived[url] = image, reply
            return
        self._arrived[url] = Arrival(outcome=failed(parse_failure(meta["error_message"]))), None
        with self._ending_on_error():
            self._reception.look()

    def close(self) -> None:
        """img2dataset's writer: nothing is open."""

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        """The downloader would print an error and go on with a full disk, losing row after row."""
        if self.error is not None:
            raise self.error
        try:
            yield
        except PixeleseError as error:
            self.error = error
            self._gate.stop()
            raise

    def outcomes(self) -> dict[str, Outcome]:
        """URL -> outcome, once the reception has finished."""
        return {url: _outcome(*arrived) for url, arrived in self._arrived.items()}


def _outcome(arrival: Arrival, reply: Reply | None) -> Outcome:
    if reply is None:
        return arrival.settled
    return dataclasses.replace(
        arrival.settled, attempts=reply.attempts, http_status=reply.http_status
    )


def _downloader(collector: _Collector, fetch: Fetch, folder: Path, num_urls: int) -> Any:
    return downloader_class()(
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
def _installed(opener: SafeOpener) -> Iterator[_Gate]:
    """Makes an opener, behind its gate, the process' own for a while."""
    gate = _Gate(opener)
    before = urllib.request._opener  # type: ignore[attr-defined]
    urllib.request.install_opener(gate)  # type: ignore[arg-type]
    try:
        yield gate
    finally:
        urllib.request.install_opener(before)
        gate.close()
