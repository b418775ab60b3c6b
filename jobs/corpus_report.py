"""What a report says of a published version: states, funnel, lengths, codes, and a gallery.

Reads the catalog and ledgers whole, and at most `MAX_SHARDS` token shards, so that the page of a
large corpus costs minutes and not a day.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from jobs.report.data import (
    CodebookUsage,
    Fact,
    FunnelRule,
    GalleryPicture,
    LedgerState,
    ReportData,
    SentenceLengths,
    SignalHistogram,
)
from pipeline.funnel import Funnel, sum_funnels
from pipeline.lineage import TRAIN
from pipeline.records import read_records
from pipeline.shard_table import read_table
from pipeline.token_shard import TokenShard, read_token_shard
from schemas.catalog import Catalog, ShardRow, Version
from schemas.declaration import Declaration, parse_declaration
from schemas.layout import ledger_path
from schemas.sentence import read_sentences
from schemas.storage import Store

MAX_SHARDS = 200
GALLERY_PICTURES = 12
HISTOGRAM_SIGNALS = {"clip": "clip_score", "image": "min_side", "caption": "caption_words"}


def corpus_report(url: str, *, number: int | None = None, title: str = "") -> ReportData:
    """Everything that a version's files tell.

    Raises:
        CatalogError: there is no such version.
        CorruptShardError: a file is not what the catalog says.
    """
    store = Store(url)
    version = Catalog(store).read(number)
    declaration = parse_declaration(version.declaration)
    funnel = sum_funnels(
        Funnel.from_counts(row.state_counts) for row in version.rows("selected", split=TRAIN)
    )
    shards = _image_shards(store, version)
    return ReportData(
        title=title or f"{url.rstrip('/').rpartition('/')[2]} v{version.number}",
        subtitle=f"published {version.time}",
        facts=tuple(_facts(version)),
        states=tuple(_states(store, version)),
        num_pairs=funnel.num_records,
        funnel=tuple(_funnel(funnel, declaration)),
        signals=tuple(_signals(store, version, declaration)),
        lengths=_lengths([shard for _, shard in shards]),
        codebook=_codebook([shard for _, shard in shards]),
        gallery=tuple(_gallery(store, version, shards)),
    )


def _facts(version: Version) -> list[Fact]:
    tokens = version.rows("tokens")
    num_records = sum(row.num_records for row in tokens)
    num_words = sum(row.num_codes + row.num_places for row in tokens)
    num_images = sum(row.num_images for row in tokens)
    seconds = sum(row.made_in_seconds for row in version.rows("tokens"))
    facts = [
        Fact(label="version", value=f"v{version.number}"),
        Fact(label="records", value=f"{num_records:,}"),
        Fact(label="images", value=f"{num_images:,}"),
        Fact(label="text ids", value=f"{sum(row.num_text_ids for row in tokens):,}"),
        Fact(label="image words", value=f"{num_words:,}", note="code words and place words"),
        Fact(label="encoding", value=f"{seconds:,.0f} s", note="worker seconds"),
    ]
    if num_images:
        mean = f"{num_words / num_images:.1f}"
        facts.append(Fact(label="words an image", value=mean, note="mean"))
    return facts


def _states(store: Store, version: Version) -> list[LedgerState]:
    counts: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {}
    for row in version.rows("pairs"):
        path = store.local(ledger_path(row.path))
        table = pq.read_table(path, columns=["state", "reason"]).group_by(["state", "reason"])
        for item in table.aggregate([([], "count_all")]).to_pylist():
            counts[item["state"]] += item["count_all"]
            if item["reason"]:
                reasons.setdefault(item["state"], Counter())[item["reason"]] += item["count_all"]
    return [
        LedgerState(state=state, num_rows=count, reasons=dict(reasons.get(state, {})))
        for state, count in counts.most_common()
    ]


def _funnel(funnel: Funnel, declaration: Declaration) -> list[FunnelRule]:
    rules = [
        FunnelRule(
            name=rule.name,
            expression=declaration.select.get(rule.name, ""),
            num_dropped_alone=rule.dropped_alone,
            num_dropped_in_order=rule.dropped_in_order,
            num_remaining=rule.remaining,
        )
        for rule in funnel.rules
    ]
    remaining = rules[-1].num_remaining if rules else funnel.num_records
    for name, told, dropped in (
        ("removed", "tombstones", funnel.removed),
        ("unique", "first of its duplicate cluster", funnel.unique),
    ):
        remaining -= dropped
        if dropped or name == "unique":
            rules.append(
                FunnelRule(
                    name=name,
                    expression=told,
                    num_dropped_alone=dropped,
                    num_dropped_in_order=dropped,
                    num_remaining=remaining,
                )
            )
    return rules


def _signals(store: Store, version: Version, declaration: Declaration) -> list[SignalHistogram]:
    """Signals that differ from pair to pair, with the threshold of the first rule on each."""
    found = []
    for signal, column in HISTOGRAM_SIGNALS.items():
        rows = [row for row in version.rows("signals") if row.signal == signal][:MAX_SHARDS]
        if rows:
            values = [read_table(store, row, columns=[column])[column].to_numpy() for row in rows]
            threshold, keeps_above = _threshold(declaration, column)
            histogram = SignalHistogram(
                name=column,
                values=np.concatenate(values),
                threshold=threshold,
                keeps_above=keeps_above,
            )
            if len(np.unique(histogram.values)) > 1:
                found.append(histogram)
    return found


def _threshold(declaration: Declaration, column: str) -> tuple[float | None, bool]:
    """The number that a rule compares a column with, and whether it keeps what is above."""
    pattern = rf"\b{column}\s*(>=?|<=?)\s*(-?[0-9.]+)"
    for rule in declaration.select.values():
        if match := re.search(pattern, rule):
            return float(match[2]), match[1].startswith(">")
    return None, True


def _image_shards(store: Store, version: Version) -> list[tuple[ShardRow, TokenShard]]:
    rows = [row for row in version.rows("tokens") if row.num_images]
    return [(row, read_token_shard(store, row)) for row in rows[:MAX_SHARDS]]


def _lengths(shards: Sequence[TokenShard]) -> SentenceLengths | None:
    if not shards:
        return None
    codes, places = [], []
    for shard in shards:
        is_code = shard.image.values >= shard.header.num_patches
        ends = np.concatenate([[0], np.cumsum(is_code)])[shard.image.offsets]
        codes.append(np.diff(ends))
        places.append(shard.image.lengths - np.diff(ends))
    return SentenceLengths(num_codes=np.concatenate(codes), num_places=np.concatenate(places))


def _codebook(shards: Sequence[TokenShard]) -> CodebookUsage | None:
    if not shards:
        return None
    counts = np.zeros(shards[0].header.codebook_size, np.int64)
    for shard in shards:
        words = shard.image.values.astype(np.int64)
        codes = words[words >= shard.header.num_patches] - shard.header.num_patches
        counts += np.bincount(codes, minlength=len(counts))
    return CodebookUsage(counts=counts)


def _gallery(
    store: Store, version: Version, shards: Sequence[tuple[ShardRow, TokenShard]]
) -> list[GalleryPicture]:
    """The shard's pictures with fewest and most codes, and some in between, in that order."""
    if not shards:
        return []
    row, shard = max(shards, key=lambda item: item[0].num_images)
    masks, _ = read_sentences(
        shard.image,
        num_patches=shard.header.num_patches,
        codebook_size=shard.header.codebook_size,
    )
    order = np.argsort(masks.sum(1), kind="stable")
    spread = np.linspace(0, len(order) - 1, min(GALLERY_PICTURES, len(order))).astype(int)
    chosen = {shard.keys[order[place]]: int(order[place]) for place in spread}
    (pairs,) = [
        item
        for item in version.rows("pairs")
        if (item.source, item.shard) == (row.source, row.shard)
    ]
    read = read_records(store, pairs, images=chosen, captions=chosen)
    found = {pair.key: pair for pair in read}
    return [
        GalleryPicture(
            image=found[key].image,
            keep_mask=masks[index],
            grid=shard.header.grid,
            caption=found[key].caption,
        )
        for key, index in chosen.items()
    ]
