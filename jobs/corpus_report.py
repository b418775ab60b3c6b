"""What a report says of a published version: ledger, hosts, funnel, signals, duplicates, codes.

Counts of states and the funnel come from the catalog and are exact. All else is read from shards
that are spread over the corpus, at most so many of each kind, and the page says how many: beyond
200 shards a larger corpus costs no more.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jobs.report.clusters import read_relations, show_contamination, show_duplicates
from jobs.report.data import (
    CodebookUsage,
    Fact,
    FunnelRule,
    GalleryPicture,
    ReportData,
    Sample,
    SentenceLengths,
)
from jobs.report.drawing import open_drawing
from jobs.report.history import history_entries
from jobs.report.ledgers import ledger_states, read_ledgers
from jobs.report.signals import find_edges, histogram_columns, histograms, show_edges
from jobs.report.stored import read_fates, read_pictures, sentences_of
from pipeline.effort import Prices
from pipeline.funnel import DECONTAMINATE, REMOVED, UNIQUE, Funnel, sum_funnels
from pipeline.history import read_history
from pipeline.lineage import TRAIN
from pipeline.retry import corpus_states
from pipeline.rules import compile_rules
from pipeline.shard_lookup import Place, ShardLookup, place_of, spread
from pipeline.thresholds import thresholds_of
from pipeline.token_shard import TokenShard, read_token_shard
from schemas.catalog import Catalog, Version
from schemas.declaration import Declaration, parse_declaration
from schemas.storage import Store

NO_PRICES = Prices()
MAX_SHARDS = 200
"""Shards whose signals, relations and tokens are read."""
PICTURE_SHARDS = 8
"""Shards whose tars are opened for pictures."""
GALLERY_PICTURES = 12
STEPS = {
    REMOVED: "has no tombstone",
    DECONTAMINATE: "is in no evaluation set",
    UNIQUE: "is the first of its duplicate cluster that got so far",
}
"""What the steps after the rules ask."""


def corpus_report(
    url: str, *, number: int | None = None, title: str = "", prices: Prices = NO_PRICES
) -> ReportData:
    """Everything that a version's files tell, and what the versions up to it changed.

    Raises:
        CatalogError: there is no such version.
        CorruptShardError: a file is not what the catalog says.
        StorageError: a file is missing.
    """
    store = Store(url)
    version = Catalog(store).read(number)
    data = _Report(store, version).data(title or _title(url, version))
    history = history_entries(read_history(store, until=version.number), prices)
    return replace(data, history=history)


def _title(url: str, version: Version) -> str:
    return f"{url.rstrip('/').rpartition('/')[2]} v{version.number}"


class _Report:
    """One version, and the shards of it that are looked at."""

    def __init__(self, store: Store, version: Version) -> None:
        self._store, self._version = store, version
        self._declaration = parse_declaration(version.declaration)
        self._lookup = ShardLookup(version)
        with_pairs = [row for row in version.rows("pairs") if row.num_records]
        self._num_shards = len(with_pairs)
        self._places = [place_of(row) for row in spread(with_pairs, MAX_SHARDS)]
        self._shown = spread(self._places, PICTURE_SHARDS)
        images = [row for row in version.rows("tokens") if row.num_images]
        self._num_token_shards = len(images)
        self._tokens = [(row, read_token_shard(store, row)) for row in spread(images, MAX_SHARDS)]

    def data(self, title: str) -> ReportData:
        store, version, lookup = self._store, self._version, self._lookup
        funnel = sum_funnels(
            Funnel.from_counts(row.state_counts) for row in version.rows("selected", split=TRAIN)
        )
        thresholds = thresholds_of(self._declaration.select)
        rule_columns = [c for rule in compile_rules(self._declaration) for c in rule.columns]
        states = corpus_states(version.rows("pairs"), version.rows("intake"))
        ledgers = read_ledgers(store, version, self._declaration)
        edges = find_edges(store, lookup, self._shown, thresholds)
        relations = read_relations(store, lookup, self._places, self._shown)
        wanted = [pair for edge in edges for pair in edge.pairs()]
        pictures = read_pictures(
            store, lookup, [*wanted, *(relations.pairs() if relations else ())]
        )
        fates = {place: read_fates(store, lookup, place) for place in self._shown}
        shards = [shard for _, shard in self._tokens]
        columns = histogram_columns(rule_columns)
        gallery, why_not_drawn = self._gallery()
        return ReportData(
            title=title,
            subtitle=f"published {version.time.replace('T', ' ').replace('+00:00', ' UTC')}",
            ledger_sample=ledgers.sample,
            pair_sample=Sample(num_read=len(self._places), num_all=self._num_shards),
            picture_sample=Sample(num_read=len(self._shown), num_all=self._num_shards),
            token_sample=Sample(num_read=len(shards), num_all=self._num_token_shards),
            facts=tuple(_facts(version)),
            states=tuple(ledger_states(states, ledgers.reasons)),
            hosts=ledgers.hosts,
            num_pairs=funnel.num_records,
            funnel=tuple(_funnel(funnel, self._declaration)),
            signals=tuple(histograms(store, lookup, self._places, columns, thresholds)),
            edges=tuple(show_edges(edges, pictures, fates)),
            duplicates=show_duplicates(relations, pictures, fates) if relations else None,
            contamination=tuple(
                show_contamination(relations, pictures, fates) if relations else ()
            ),
            lengths=_lengths(shards),
            codebook=_codebook(shards),
            gallery=gallery,
            why_not_drawn=why_not_drawn,
        )

    def _gallery(self) -> tuple[tuple[GalleryPicture, ...], str]:
        """The pictures of one shard, from the fewest codes to the most; and why none is drawn."""
        if not self._tokens:
            return (), ""
        row, shard = max(self._tokens, key=lambda item: item[0].num_images)
        place: Place = place_of(row)
        sentences = sentences_of(shard, shard.keys)
        order = sorted(sentences, key=lambda key: len(sentences[key].codes))
        chosen = np.linspace(0, len(order) - 1, min(GALLERY_PICTURES, len(order))).astype(int)
        keys = [order[at] for at in chosen]
        drawing = open_drawing(
            self._store, self._version.declaration, fingerprint=shard.header.image_tokenizer
        )
        drawn = drawing.draw([sentences[key] for key in keys])
        pictures = read_pictures(self._store, self._lookup, ((place, key) for key in keys))
        gallery = tuple(
            GalleryPicture(
                image=pictures[place, key].image,
                keep_mask=sentences[key].keep_mask,
                grid=sentences[key].grid,
                drawn=picture,
                caption=pictures[place, key].caption,
            )
            for key, picture in zip(keys, drawn, strict=True)
        )
        return gallery, drawing.why_not


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


def _funnel(funnel: Funnel, declaration: Declaration) -> list[FunnelRule]:
    """The rules, and what comes after them where it dropped anything."""
    return [
        FunnelRule(
            name=step.name,
            expression=declaration.select.get(step.name) or STEPS.get(step.name, ""),
            num_dropped_alone=step.alone,
            num_dropped_in_order=step.in_order,
            num_remaining=step.remaining,
        )
        for step in funnel.steps()
        if funnel.num_records and (step.in_order or step.name not in (REMOVED, DECONTAMINATE))
    ]


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
