"""One safe HTTP request, as the opener that urllib (and so img2dataset) uses in a worker.

http(s) only, no proxy, no cookies, no decompression; checked addresses on every hop; one deadline
from the name look-up to the last byte of the last redirect, so that a server that drips a byte a
second is no different from one that hangs; a cap on bytes. Transient failures are tried again with
jittered back-off. What it costs beside urllib: a connection for each request, as there.
"""

import email.utils
import http.client
import io
import logging
import random
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from pipeline.addresses import AddressGuard, Deadline, is_public, is_public_or_intranet
from pipeline.failures import FetchError
from pipeline.opt_out import is_opted_out
from schemas.declaration import Fetch
from schemas.ledger import State
from schemas.record import normalise_url

_MAX_REDIRECTS = 8
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 1 << 16
_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
"""A server that asks for more patience is left for a replay."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """A body that arrived whole."""

    body: bytes
    http_status: int
    attempts: int = 1


class SafeOpener(urllib.request.OpenerDirector):
    """What `urllib.request.urlopen` calls once it is installed."""

    def __init__(self, fetch: Fetch, *, guard: AddressGuard | None = None) -> None:
        # Not OpenerDirector's: no handler of urllib takes part.
        self._fetch = fetch
        is_allowed = is_public_or_intranet if fetch.allow_private_addresses else is_public
        self._guard = guard or AddressGuard(num_threads=fetch.num_threads, is_allowed=is_allowed)
        self._tls = ssl.create_default_context()
        self._replies: dict[str, Reply] = {}
        self._stopped = threading.Event()

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> Any:
        """The body of a URL as a file. The deadline is ours: `timeout` is ignored.

        Raises:
            FetchError: always of this type, whatever happened.
        """
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        try:
            reply = self.get(url)
        except FetchError:
            raise
        # Whatever else: a defect of ours that must end as a row and be seen there.
        except Exception as error:
            log.warning("request failed in an unforeseen way: url=%s", url, exc_info=True)
            raise FetchError(State.INTERNAL_ERROR, type(error).__name__) from error
        self._replies[url] = Reply(b"", reply.http_status, reply.attempts)
        return io.BytesIO(reply.body)

    def facts(self, url: str) -> Reply | None:
        """Status and attempts of a URL that was opened (without its body), once."""
        return self._replies.pop(url, None)

    def stop(self) -> None:
        """Makes every request from now on fail at once: the shard is lost anyway."""
        self._stopped.set()

    def close(self) -> None:
        """Lets the resolver threads go."""
        self.stop()
        self._guard.close()

    def get(self, url: str) -> Reply:
        """Requests a URL, again after transient failures. Raises FetchError with all attempts."""
        attempts = 0
        while True:
            attempts += 1
            if self._stopped.is_set():
                raise FetchError(State.INTERNAL_ERROR, "stopped", attempts=attempts)
            try:
                reply = self._attempt(url)
            except FetchError as error:
                error.attempts = attempts
                if not error.is_transient or attempts > self._fetch.retries:
                    raise
                wait = backoff_seconds(attempts, error.retry_after_seconds)
                if wait > _MAX_BACKOFF_SECONDS:
                    raise
                self._stopped.wait(wait)
            else:
                return Reply(reply.body, reply.http_status, attempts)

    def _attempt(self, url: str) -> Reply:
        deadline = Deadline.after(self._fetch.timeout_seconds)
        for _ in range(_MAX_REDIRECTS + 1):
            result = self._hop(url, deadline)
            if isinstance(result, Reply):
                return result
            url = result
        raise FetchError(State.HTTP_4XX, "too_many_redirects", http_status=302)

    def _hop(self, url: str, deadline: Deadline) -> Reply | str:
        """One request: a reply, or the URL that it points to."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise FetchError(State.BLOCKED_ADDRESS, "scheme")
        if not parts.hostname:
            raise FetchError(State.BAD_ROW, "bad_url")
        is_tls = parts.scheme == "https"
        connection = _Connection(
            parts.hostname,
            parts.port or (443 if is_tls else 80),
            guard=self._guard,
            deadline=deadline,
            tls=self._tls if is_tls else None,
        )
        try:
            return self._exchange(connection, url, deadline)
        except TimeoutError as error:
            raise FetchError(State.TIMEOUT, "deadline") from error
        except ssl.SSLCertVerificationError as error:
            raise FetchError(State.CONNECTION_ERROR, "certificate", is_final=True) from error
        except ssl.SSLError as error:
            raise FetchError(State.CONNECTION_ERROR, "tls") from error
        except http.client.InvalidURL as error:
            raise FetchError(State.BAD_ROW, "bad_url") from error
        except http.client.IncompleteRead as error:
            raise FetchError(State.CONNECTION_ERROR, "cut_body") from error
        except http.client.RemoteDisconnected as error:
            raise FetchError(State.CONNECTION_ERROR, "disconnected") from error
        except http.client.HTTPException as error:
            raise FetchError(State.CONNECTION_ERROR, "bad_reply") from error
        except OSError as error:
            raise FetchError(State.CONNECTION_ERROR, "disconnected") from error
        finally:
            connection.close()

    def _exchange(self, connection: "_Connection", url: str, deadline: Deadline) -> Reply | str:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "User-Agent": self._fetch.user_agent,
            "Accept": "image/*,*/*;q=0.8",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            status = response.status
            if status in _REDIRECTS:
                return _redirect(url, response.getheader("Location"), status)
            if not 200 <= status < 300:
                raise _status_error(status, response.getheader("Retry-After"))
            tags = response.headers.get_all("X-Robots-Tag", [])
            if self._fetch.respect_opt_out and is_opted_out(
                tags, user_agent=self._fetch.user_agent
            ):
                raise FetchError(State.OPTED_OUT, "x_robots_tag", http_status=status)
            return Reply(self._read_body(response, deadline), status)

    def _read_body(self, response: http.client.HTTPResponse, deadline: Deadline) -> bytes:
        limit = self._fetch.max_bytes
        too_many = FetchError(State.TOO_MANY_BYTES, "max_bytes", http_status=response.status)
        if response.length is not None and response.length > limit:
            raise too_many
        chunks, num_bytes = [], 0
        while chunk := response.read(_CHUNK_BYTES):
            deadline.left()
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise too_many
            chunks.append(chunk)
        if response.length:  # the rest that was promised: read(n) does not complain by itself
            raise FetchError(State.CONNECTION_ERROR, "cut_body", http_status=response.status)
        return b"".join(chunks)


def backoff_seconds(
    attempts: int,
    retry_after_seconds: float | None,
    *,
    jitter: Callable[[], float] = random.random,
) -> float:
    """How long to wait after so many attempts: doubling, half of it random, and never less than
    the server asked for."""
    planned = min(_BACKOFF_SECONDS * 2.0 ** (attempts - 1), _MAX_BACKOFF_SECONDS)
    return max(planned * (0.5 + jitter() / 2), retry_after_seconds or 0.0)


def _redirect(url: str, location: str | None, status: int) -> str:
    if not location:
        raise FetchError(State.HTTP_4XX, "redirect_without_location", http_status=status)
    # http.client decodes headers as Latin-1; what was sent is mostly UTF-8.
    text = location.encode("latin-1", errors="replace").decode(errors="replace")
    try:
        target = urljoin(url, text)
    except ValueError:
        target = ""
    normalised = normalise_url(target)
    if normalised is None:
        raise FetchError(State.HTTP_4XX, "bad_redirect", http_status=status)
    return normalised


def _status_error(status: int, retry_after: str | None) -> FetchError:
    state = State.HTTP_5XX if status >= 500 else State.HTTP_4XX
    return FetchError(
        State.HTTP_429 if status == 429 else state,
        f"status_{status}",
        http_status=status,
        retry_after_seconds=_parse_retry_after(retry_after),
    )


def _parse_retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or a date."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


class _Connection(http.client.HTTPConnection):
    """A connection through the guard, whose every read is bounded by the deadline."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        guard: AddressGuard,
        deadline: Deadline,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(host, port)
        if tls is not None:
            self.default_port = 443
        self._guard = guard
        self._deadline = deadline
        self._tls = tls

    def connect(self) -> None:
        opened = self._guard.connect(self.host, self.port, self._deadline)
        opened.settimeout(self._deadline.left())
        if self._tls is not None:
            # On failure wrap_socket closes the socket itself.
            opened = self._tls.wrap_socket(opened, server_hostname=self.host)
        self.sock = opened

    def response_class(  # type: ignore[override]
        self, sock: Any, *args: Any, **options: Any
    ) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, *args, **options)
        reader = _DeadlineReader(response.fp.detach(), sock, self._deadline)
        response.fp = io.BufferedReader(reader)
        return response


class _DeadlineReader(io.RawIOBase):
    """A socket's raw file. Each read may take as long as the whole request has left, no longer."""

    def __init__(self, raw: io.RawIOBase, sock: Any, deadline: Deadline) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
