"""Every failure a user can cause, as a type.

    PixeleseError
    |- DeclarationError      corpus.yaml says something that cannot be
    |- SourceError           an input list, archive or folder is missing, empty or unreadable
    |- OutageError           fetching stopped: something other than the list is at fault
    |- StorageError          the corpus cannot be read or written: no space, permission or bucket
    |  |- AccessError        permission or credentials: another attempt cannot mend that
    |  `- NoSpaceError       its disk is full: another attempt cannot mend that
    |- LedgerError           input rows and states do not add up
    |- CorruptShardError     a published file is not what the catalog says it is
    |- FingerprintError      two things that must come from the same tokenizer do not
    |- CatalogError          no such version, or a version that cannot be used for this
    |  `- ConflictError      somebody else published first
    |- ArtifactError         a tokenizer folder is incomplete, altered or of another format
    |- StreamError           a token stream cannot be opened as asked
    |- CheckpointError       a training checkpoint does not fit
    |- ClusterError          a Ray cluster cannot be joined, or lacks what a stage asks for
    `- WorkerError           a shard failed on a worker more often than it may

A message says what happened, which input, and what to do.
"""

from typing import Any


class PixeleseError(Exception):
    """Base of all. `shard` and `key` name what it is about, where that is known."""

    def __init__(self, message: str, *, shard: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        """Keeps `shard` and `key` when an error travels from a worker to the driver."""
        return _rebuild, (type(self), self.args[0], self.shard, self.key)


def _rebuild(
    kind: type[PixeleseError], message: str, shard: str | None, key: str | None
) -> PixeleseError:
    return kind(message, shard=shard, key=key)


class DeclarationError(PixeleseError):
    """corpus.yaml says something that cannot be."""


class SourceError(PixeleseError):
    """An input list, archive or folder is missing, empty or unreadable."""


class OutageError(PixeleseError):
    """Fetching stopped because something other than the list is at fault; nothing is lost."""


class StorageError(PixeleseError):
    """The corpus cannot be read or written."""


class AccessError(StorageError):
    """The corpus' store refuses: permission, credentials or a missing bucket."""


class NoSpaceError(StorageError):
    """The corpus' disk is full: another attempt cannot mend that."""


class LedgerError(PixeleseError):
    """Input rows and states do not add up. Nothing of the shard is published."""


class CorruptShardError(PixeleseError):
    """A published file is not what the catalog says it is."""


class FingerprintError(PixeleseError):
    """Two things that must come from the same tokenizer do not."""


class CatalogError(PixeleseError):
    """No such version, or a version that cannot be used for this."""


class ConflictError(CatalogError):
    """Somebody else published first."""


class ArtifactError(PixeleseError):
    """A tokenizer folder is incomplete, altered or of another format."""


class StreamError(PixeleseError):
    """A token stream cannot be opened as asked."""


class CheckpointError(PixeleseError):
    """A training checkpoint does not fit."""


class WorkerError(PixeleseError):
    """A shard failed on a worker more often than it may."""


class ClusterError(PixeleseError):
    """A Ray cluster cannot be joined, or lacks what a stage asks for."""
