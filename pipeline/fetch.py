"""Fetches one intake shard into a pair shard: a tar of stored pairs, and a ledger of all rows.

Every input row is in the ledger, in exactly one state: those that needed no fetching, those that
must not be fetched, those that came, those that failed, and those that the downloader lost on its
way (`internal_error`, `lost`). The ledger must balance before anything is published. What the web
gives is given once, so a tar is named by its content; the same bytes received give the same tar, in
whatever order they came. 10,000 rows take half a gigabyte of scratch space, and 170 MB of memory
beyond what the worker has loaded.
"""

import contextlib
import io
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.blocklist import Blocklist, read_blocklist
from pipeline.decoder import Decoder
from pipeline.download import download
from pipeline.known_pictures import take_known
from pipeline.members import read_members
from pipeline.outcomes import PICTURE_FIELDS, Outcome, WaitingRoom
from pipeline.pair_shard import Pair, write_pairs
from pipeline.provenance import observation_parts
from pipeline.reception import Arrival, Reception
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Images, Source
from schemas.errors import CorruptShardError
from schemas.fingerprint import bytes_sha256, canonical_json, file_sha256, records_digest
from schemas.layout import ledger_path, pairs_path
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA, State, check_closed, count_states
from schemas.record import caption_sha256
from schemas.storage import Store, check_digest, storage_errors

_Row = dict[str, Any]

_STORED_FIELDS = (
    "key",
    "url",
    "caption",
    "sha256",
    "width",
    "height",
    "original_width",
    "original_height",
    "original_format",
    "original_mode",
    "flags",
)
"""What KEY.json holds: nothing that another fetch of the same bytes would change."""

log = logging.getLogger(__name__)


def fetch_shard(
    store: Store,
    intake: ShardRow,
    *,
    source: Source,
    fetch: Fetch,
    images: Images,
    decoder: Decoder[Arrival] | None = None,
    blocklist: Blocklist | None = None,
    earlier: Sequence[ShardRow] = (),
) -> ShardRow:
    """Makes the pair shard of an intake shard, and publishes it with its ledger.

    Args:
        store: the corpus.
        intake: an intake shard of a source with images.
        source: where its rows come from.
        fetch: limits of requests, and what is blocked.
        images: limits of images, and how they are stored.
        decoder: of these `images`; kept by a worker that has more shards to fetch.
        blocklist: that of `fetch`, where it is read already.
        earlier: pair shards of the source; pictures that they have are not fetched again.

    Returns:
        the catalog row of kind `pairs`.

    Raises:
        LedgerError: rows and states do not add up; nothing is published.
        SourceError: a tar or folder cannot be read any more, or a blocklist cannot be read.
        StorageError: the corpus or its scratch space cannot be written.
        CorruptShardError: the intake shard is not the one in the catalog.
        OutageError: the web cannot be reached, and the list is not at fault.
        WorkerError: no decoder can be started.
        ValueError: the source is one of texts, which are ready from intake on.
    """
    if source.kind == "text":
        raise ValueError(f"source {source.name!r} has texts: there is nothing to fetch")
    started = time.monotonic()
    rows = _read_intake(store, intake)
    if blocklist is None:
        blocklist = read_blocklist(store, fetch)
    rows = [_strike_out(row, blocklist, has_urls=source.kind == "urls") for row in rows]
    folder = Path(tempfile.mkdtemp(prefix="fetch-", dir=store.scratch()))
    try:
        with contextlib.ExitStack() as stack:
            room = stack.enter_context(WaitingRoom(folder / "images"))
            decoder = decoder or stack.enter_context(Decoder(images))
            reception = stack.enter_context(Reception(decoder, room, blocklist))
            outcomes = take_known(store, rows, earlier, room, blocklist)
            rest = [row for row in rows if row["fetch_id"] not in outcomes]
            outcomes |= _fetch(store, rest, source, fetch, folder, reception)
            ledger = _ledger(rows, outcomes)
            states = count_states(row["state"] for row in ledger)
            check_closed(intake.num_rows, states, shard=f"{source.name}/{intake.shard}")
            tar = folder / "pairs.tar"
            with storage_errors("write", str(tar)):
                num_pairs = write_pairs(tar, _pairs(ledger, outcomes, room))
        seconds = time.monotonic() - started
        row = _publish(store, intake, tar, ledger, states, num_pairs, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    log.info(
        "fetched source=%s shard=%s rows=%d ok=%d seconds=%.1f",
        row.source,
        row.shard,
        row.num_rows,
        row.num_records,
        row.made_in_seconds,
    )
    return row


def _read_intake(store: Store, intake: ShardRow) -> list[_Row]:
    path = store.local(intake.path, sha256=intake.sha256)
    check_digest(path, intake.sha256, name=intake.path)
    table = pq.read_table(path)
    if not table.schema.equals(INTAKE_SCHEMA) or table.num_rows != intake.num_rows:
        raise CorruptShardError(
            f"{intake.path} has other columns or rows than an intake shard of this release",
            shard=intake.path,
        )
    rows: list[_Row] = table.to_pylist()
    return rows


def _strike_out(row: _Row, blocklist: Blocklist, *, has_urls: bool) -> _Row:
    """The row, with a state if it must not be fetched."""
    if row["state"] is not None:
        return row
    reason = blocklist.of_row(row["row_id"], row["fetch_id"])
    if reason is None and has_urls:
        reason = blocklist.of_url(row["url"])
    return row if reason is None else row | {"state": State.REMOVED.value, "reason": reason}


def _fetch(
    store: Store,
    rows: Sequence[_Row],
    source: Source,
    fetch: Fetch,
    folder: Path,
    reception: Reception,
) -> dict[str, Outcome]:
    """`fetch_id` -> outcome, for all that is still to be fetched; each once."""
    wanted: dict[str, _Row] = {}
    for row in rows:
        if row["state"] is None:
            wanted.setdefault(row["fetch_id"], row)
    if source.kind == "urls":
        scratch = folder / "img2dataset"
        scratch.mkdir()
        urls = {fetch_id: row["url"] for fetch_id, row in wanted.items()}
        return download(urls, fetch=fetch, folder=scratch, reception=reception)
    return read_members(
        wanted.values(), store=store, is_archive=source.kind == "tars", reception=reception
    )


_LOST = Outcome(state=State.INTERNAL_ERROR, reason="lost")


def _ledger(rows: Sequence[_Row], outcomes: Mapping[str, Outcome]) -> list[_Row]:
    """A ledger row for every intake row, by key; repeats of a key keep their order."""
    ledger = [_ledger_row(row, outcomes) for row in rows]
    return sorted(ledger, key=lambda row: row["key"])


def _ledger_row(row: _Row, outcomes: Mapping[str, Outcome]) -> _Row:
    names = ("row_id", "fetch_id", "key", "url", "caption")
    entry: _Row = dict.fromkeys(LEDGER_SCHEMA.names) | {name: row[name] for name in names}
    entry["generation"] = row["generation"]
    entry["flags"] = row["flags"] or []
    if row["state"] is not None:
        return entry | {"state": row["state"], "reason": row["reason"]}
    outcome = _expected(outcomes.get(row["fetch_id"], _LOST), row["expected_sha256"])
    facts = {name: getattr(outcome, name) for name in _OUTCOME_FIELDS}
    flags = sorted({*entry["flags"], *outcome.flags})
    return entry | facts | {"state": outcome.state.value, "flags": flags}


def _expected(outcome: Outcome, sha256: str | None) -> Outcome:
    """The outcome for a row whose list says what the bytes are. Rows of one URL may differ in it,
    so the picture is fetched once and judged for each."""
    if sha256 is None or outcome.sha256 in (None, sha256) or outcome.state is State.REMOVED:
        return outcome
    return Outcome(
        state=State.HASH_MISMATCH,
        reason="sha256",
        attempts=outcome.attempts,
        http_status=outcome.http_status,
        sha256=outcome.sha256,
    )


_OUTCOME_FIELDS = ("reason", "attempts", "http_status", *PICTURE_FIELDS)


def _pairs(
    ledger: Sequence[_Row], outcomes: Mapping[str, Outcome], room: WaitingRoom
) -> Iterator[Pair]:
    for row in _stored(ledger):
        image = room.get(outcomes[row["fetch_id"]])
        yield Pair(row["key"], image, row["caption"], {name: row[name] for name in _STORED_FIELDS})


def _stored(ledger: Sequence[_Row]) -> Iterator[_Row]:
    return (row for row in ledger if row["state"] == State.OK.value)


def _publish(
    store: Store,
    intake: ShardRow,
    tar: Path,
    ledger: Sequence[_Row],
    states: Mapping[str, int],
    num_pairs: int,
    seconds: float,
) -> ShardRow:
    with storage_errors("read", str(tar)):
        sha256, num_bytes = file_sha256(tar), tar.stat().st_size
    path = pairs_path(intake.source, intake.shard, sha256)
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(list(ledger), schema=LEDGER_SCHEMA),
        sink,
        compression="zstd",
        write_page_checksum=True,
    )
    # The ledger first: a tar that can be seen has its ledger beside it.
    store.write(ledger_path(path), sink.getvalue())
    store.publish(tar, path)
    records = (
        (r["key"], r["stored_sha256"], caption_sha256(r["caption"])) for r in _stored(ledger)
    )
    return ShardRow(
        kind="pairs",
        source=intake.source,
        shard=intake.shard,
        ordinal=intake.ordinal,
        path=path,
        fingerprint=sha256,
        parts=observation_parts(ledger_sha256=bytes_sha256(sink.getvalue())),
        records=records_digest(records),
        inputs=intake.sha256,
        sha256=sha256,
        bytes=num_bytes,
        num_rows=len(ledger),
        num_records=num_pairs,
        num_images=num_pairs,
        states=canonical_json(dict(states)).decode(),
        made_in_seconds=seconds,
        numeric=f"pillow {PIL.__version__}",
    )
