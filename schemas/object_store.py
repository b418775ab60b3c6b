"""How requests to an object store fail: which are made again, by whom, and how a failure is told.

One layer tries a failure again, never two. A request that fails by itself (503, 500, no connection,
no reply) is the driver's: on S3 botocore makes `REQUEST_ATTEMPTS` in all and waits for random times
of at most 1, 2, 4, 8 and 16 seconds between them, so that a store that stays away is told after
31 seconds of waiting at most, 16 as a rule, besides time-outs of 15 seconds each. s3fs' own loop
around that is turned off: it made up to 125 requests of one. What no driver mends (a body that is
cut off, an upload whose end was confirmed to nobody) is tried again here, `TRIES` times in all
within 3.5 seconds of waiting. A refusal is tried once.
"""

import contextlib
import errno
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import fsspec

from schemas.errors import AccessError, NoSpaceError, StorageError

logger = logging.getLogger(__name__)

REQUEST_ATTEMPTS = 6
"""Of one request to S3; AWS_MAX_ATTEMPTS says otherwise."""
TRIES = 4
"""Of one read or write, where a driver gives up at once though it need not."""
WAIT_SECONDS = 0.5
"""The longest wait before the second try; it doubles with each."""

_Result = TypeVar("_Result")

_PASSING_TYPES = (
    ("aiohttp", "ClientPayloadError"),
    ("aiobotocore.response", "AioReadTimeoutError"),
    ("botocore.exceptions", "ResponseStreamingError"),
    ("botocore.exceptions", "IncompleteReadError"),
    ("botocore.parsers", "ResponseParserError"),  # a proxy's page in place of S3's XML
)
_FAILURE_TYPES = (
    *_PASSING_TYPES,
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
"""What drivers raise beside OSError. Whatever is not imported has not been raised."""
_PASSING_CODES = frozenset(
    {
        "ConditionalRequestConflict",  # two conditional puts at once, which says nothing of who won
        "OperationAborted",
        "409",
        "NoSuchUpload",  # its completion was taken, and the reply lost
    }
)
_TAKEN_CODES = frozenset({"PreconditionFailed", "412"})
_BUSY_CODES = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "500",
        "502",
        "503",
        "504",
    }
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_UNKNOWN_CODES = frozenset({"InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})


_UNANSWERED_TYPES = (
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "HTTPClientError"),
)
_CREDENTIALS_TYPES = (
    ("botocore.exceptions", "NoCredentialsError"),
    ("botocore.exceptions", "PartialCredentialsError"),
)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        StorageError: the protocol is unknown, or its driver is not installed.
    """
    options: dict[str, Any] = {}
    if _protocol(url) in ("s3", "s3a"):
        options["config_kwargs"] = _botocore_settings()
    try:
        # A cached listing would hide what other machines have published since.
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"cannot open {url}: {error}. Install the fsspec driver of this protocol, or "
            "check the URL"
        ) from error
    if is_s3(fs):
        fs.retries = 1  # botocore has tried again already
    return fs, str(path)


def _protocol(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "file"


def _botocore_settings() -> dict[str, Any]:
    """Our retries, and whatever a person has set; what a person says counts."""
    declared = dict(fsspec.config.conf.get("s3", {}).get("config_kwargs", {}))
    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = REQUEST_ATTEMPTS
    return {"retries": retries, **declared}


def is_s3(fs: Any) -> bool:
    """Whether a file system is s3fs'."""
    return hasattr(fs, "call_s3")


@contextlib.contextmanager
def storage_errors(action: str, place: str) -> Iterator[None]:
    """Turns an operating-system or driver's error into a StorageError that says what to do."""
    try:
        yield
    except _types(_FAILURE_TYPES) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"cannot {action} {place}: no space is left. Free some and run the same command "
                "again, nothing is lost"
            ) from error
        kind = AccessError if _is_refusal(error) else StorageError
        raise kind(f"cannot {action} {place}: {_remedy(error)}") from error


def persistently(work: Callable[[], _Result]) -> _Result:
    """The result of some work, which is done again where it failed in passing.

    Args:
        work: may be done twice, also where its first outcome is not known.

    Raises:
        Exception: whatever `work` raised at last.
    """
    for attempt in range(TRIES - 1):
        try:
            return work()
        except _types(_FAILURE_TYPES) as error:
            if not _is_passing(error):
                raise
            logger.info("trying again attempt=%d error=%r", attempt + 1, error)
        time.sleep(random.uniform(0, WAIT_SECONDS * 2**attempt))
    return work()


def _is_passing(error: BaseException) -> bool:
    """Whether another try may succeed, and the driver has not had one."""
    return isinstance(error, _named(_PASSING_TYPES)) or reply_code(error) in _PASSING_CODES


def reply_code(error: BaseException) -> str:
    """The code in the reply that an error was made of, as S3 names it; "" where there was none."""
    for source in (error, error.__cause__):
        reply = getattr(source, "response", None)
        if isinstance(reply, Mapping):
            return str(reply.get("Error", {}).get("Code", ""))
    return ""


def _remedy(error: BaseException) -> str:
    """What happened, and what a person can do about it."""
    code, said = reply_code(error), str(error) or type(error).__name__
    if code in _EXPIRED_CODES:
        return f"the credentials have expired ({code}): renew them and run the same command again"
    if code in _UNKNOWN_CODES:
        return f"the credentials are not accepted ({code}: {said}): check which are in use"
    if code in _BUSY_CODES or _is_passing(error) or isinstance(error, _named(_UNANSWERED_TYPES)):
        return (
            f"the store is busy or does not answer ({said}). It was asked several times: run the "
            "same command again later, what was finished is kept"
        )
    if code == "400":  # the reply to a HEAD has no body that would say more
        return f"{said}; expired credentials look like this: renew them, or check the URL"
    if isinstance(error, FileNotFoundError):
        return "it does not exist: check the path, and that the bucket or folder is there"
    if code and isinstance(error, PermissionError):
        return (
            f"access is denied ({code}: {said}): check which credentials are in use, and what they "
            "may do in this bucket"
        )
    if _is_refusal(error) and isinstance(error, OSError):
        return "permission denied: check who owns it"
    return said


def _is_refusal(error: BaseException) -> bool:
    """Whether another attempt will end in the same way until a person does something."""
    return (
        reply_code(error) in _EXPIRED_CODES | _UNKNOWN_CODES | {"NoSuchBucket"}
        or isinstance(error, (PermissionError, *_named(_CREDENTIALS_TYPES)))
        or getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS)
    )


def _types(names: Sequence[tuple[str, str]]) -> tuple[type[BaseException], ...]:
    return (OSError, *_named(names))


def _named(names: Sequence[tuple[str, str]]) -> tuple[type[BaseException], ...]:
    """Types of drivers that are imported by now."""
    modules = ((sys.modules.get(module), name) for module, name in names)
    return tuple(getattr(module, name) for module, name in modules if module is not None)


def read_object(fs: Any, path: str) -> bytes:
    """All bytes of an object, by one request on S3: s3fs asks for the size first otherwise."""
    return bytes(fs.cat_file(path, max_concurrency=1) if is_s3(fs) else fs.cat_file(path))


def list_objects(fs: Any, root: str, prefix: str) -> dict[str, Mapping[str, Any]]:
    """Path -> facts of the objects below a folder `prefix` of `root`; none where there is none.

    On S3 a request for a thousand objects and no other.
    """
    if not is_s3(fs):
        path = f"{root}/{prefix}" if prefix else root
        return dict(fs.find(path, detail=True)) if fs.exists(path) else {}
    found = fs.find(root, prefix=f"{prefix}/" if prefix else "", detail=True)
    # What a console made for a folder is no file.
    return {path: facts for path, facts in found.items() if not path.endswith("/")}


def time_of(fs: Any, facts: Mapping[str, Any]) -> float:
    """When an object was written, in seconds since the epoch. Drivers have names of their own."""
    for name in ("LastModified", "last_modified", "mtime", "updated"):
        value = facts.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
        if isinstance(value, int | float):
            return float(value)
    found: datetime = fs.modified(facts["name"])
    return found.timestamp()


def create_object(fs: Any, path: str, data: bytes) -> None:
    """A conditional PUT. Raises FileExistsError where the name is taken."""
    try:
        fs.pipe_file(path, data, mode="create")
    except OSError as error:
        # S3 names the condition that failed, and its likenesses need not.
        if reply_code(error) in _TAKEN_CODES:
            raise FileExistsError(path) from error
        raise


def delete_objects(fs: Any, paths: Sequence[str]) -> None:
    """Deletes objects, on S3 by one request. Raises OSError where some are refused."""
    if not is_s3(fs):
        fs.rm(list(paths))
        return
    # s3fs' own bulk deletion passes over what the server refuses to delete.
    bucket = fs.split_path(paths[0])[0]
    objects = [{"Key": fs.split_path(path)[1]} for path in paths]
    reply = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    refused = reply.get("Errors", [])
    if refused:
        first = refused[0]
        reason = first.get("Message") or first.get("Code")
        raise OSError(f"{len(refused)} were refused, the first is {first.get('Key')}: {reason}")
