"""Explains one row: from its line in a list to its place in a token shard, with every verdict.

What became of it is read from the published files; why is worked out again from them, rule by rule,
and both are held against each other. Finding the row costs most (row_search.py); following it reads
one shard of each kind, and for a duplicate the `cluster` column of the relations before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ending import conclude
from pipeline.funnel import DECONTAMINATE, REMOVED, UNIQUE
from pipeline.row_search import FoundRow, find_rows
from pipeline.rules import Rule, compile_rules
from pipeline.shard_lookup import Place, ShardLookup, place_of
from pipeline.shard_map import Watch, map_shards, unwatched
from pipeline.shard_table import read_parquet, read_table
from pipeline.thresholds import Threshold, find_thresholds
from pipeline.token_place import TokenPlace, find_tokens
from pipeline.tombstones import Tombstones, read_tombstones, removed_documents, removed_pairs
from pipeline.trace import Comparison, Explanation, Member, RowTrace, Verdict
from schemas.catalog import ShardRow, Version
from schemas.declaration import Declaration, parse_declaration
from schemas.errors import CorruptShardError
from schemas.layout import ledger_path
from schemas.ledger import State
from schemas.storage import Store


def explain_row(
    store: Store, version: Version, query: str, *, watch: Watch = unwatched
) -> Explanation:
    """Follows the rows of a key or URL through a version.

    Args:
        store: the corpus.
        version: all kinds of its rows.
        query: as `find_rows` takes it.
        watch: is told how far the search for it, and for its cluster, is.

    Raises:
        CatalogError: there is no such row.
        CorruptShardError: a file is not what the catalog says.
        StorageError: one is missing.
    """
    declaration = parse_declaration(version.declaration)
    search = find_rows(store, version.rows("intake"), query, declaration=declaration, watch=watch)
    keys = list(dict.fromkeys(row.key for row in search.rows))
    tracer = _Tracer(store, version, declaration, watch)
    traces = list(tracer.trace(search.rows, to_the_end=len(keys) == 1))
    return Explanation(
        query=query,
        version=version.number,
        keys=keys,
        rows=traces,
        num_shards=search.num_shards,
        num_read=search.num_read,
    )


class _Tracer:
    """Follows rows through the shards of one version."""

    def __init__(
        self, store: Store, version: Version, declaration: Declaration, watch: Watch
    ) -> None:
        self._store, self._version, self._declaration = store, version, declaration
        self._watch = watch
        self._lookup = ShardLookup(version)
        self._tombstones: Tombstones | None = None

    def trace(self, rows: Sequence[FoundRow], *, to_the_end: bool) -> Iterator[RowTrace]:
        """One trace a row; `to_the_end` beyond the ledger."""
        newest = {
            row.key: max(int(r.values["generation"]) for r in rows if r.key == row.key)
            for row in rows
        }
        seen: dict[tuple[Place, str], int] = {}
        for row in rows:
            # Repeats of a key stand in the ledger in the order in which they came in.
            repeat = seen[place_of(row.shard), row.key] = (
                seen.get((place_of(row.shard), row.key), -1) + 1
            )
            facts = {**self._arrival(row), **self._ledger(row, repeat)}
            if to_the_end and self._is_record(row, facts):
                facts |= self._record(row)
            trace = RowTrace(**facts)
            yield conclude(trace, newest=newest[row.key])

    def _is_record(self, row: FoundRow, facts: dict[str, Any]) -> bool:
        """Whether a row went on from the ledger (or, of a text source, from intake)."""
        values = facts["ledger"] or row.values
        return bool(values["state"] == State.OK.value)

    def _arrival(self, row: FoundRow) -> dict[str, Any]:
        source = self._declaration.source(row.shard.source)
        return {
            "source": source.name,
            "kind": source.kind,
            "location": source.location,
            "shard": row.shard.shard,
            "ordinal": row.shard.ordinal,
            "intake_path": row.shard.path,
            "row": row.number,
            "intake": row.values,
        }

    def _ledger(self, row: FoundRow, repeat: int) -> dict[str, Any]:
        pairs = self._lookup.one("pairs", place_of(row.shard))
        if pairs is None:
            return {"ledger": None}
        path = ledger_path(pairs.path)
        table = read_parquet(self._store, path)
        hits = table.filter(pc.equal(table["key"], row.key)).to_pylist()
        if repeat >= len(hits):
            raise CorruptShardError(
                f"{path} has {len(hits)} rows of key {row.key}, its intake shard has more: restore "
                "it, or fetch this shard again",
                shard=path,
                key=row.key,
            )
        return {"ledger": hits[repeat], "ledger_path": path}

    def _record(self, row: FoundRow) -> dict[str, Any]:
        """All that came after the ledger."""
        place, key = place_of(row.shard), row.key
        pairs = self._lookup.one("pairs", place)
        selected = self._row(self._lookup.one("selected", place), key)
        facts: dict[str, Any] = {"selected": selected}
        if pairs is None:
            facts["verdicts"] = self._document_verdicts(row, selected)
        else:
            facts |= self._pair(pairs, key, selected)
        if selected is not None and selected["kept"]:
            facts["tokens"] = self._tokens(place, key, selected["split"])
        return facts

    def _pair(self, pairs: ShardRow, key: str, selected: dict[str, Any] | None) -> dict[str, Any]:
        place = place_of(pairs)
        signals = {
            row.signal: found
            for row in self._lookup.at("signals", place)
            if (found := self._row(row, key)) is not None
        }
        relation = self._row(self._lookup.one("relations", place), key)
        leader, taken_by = self._cluster(pairs, key, relation, selected)
        verdicts = self._pair_verdicts(pairs, key, signals, relation, selected, taken_by)
        return {
            "pair_path": pairs.path,
            "pair": self._pair_number(pairs, key),
            "signals": {name: _without_key(values) for name, values in signals.items()},
            "relation": None if relation is None else _without_key(relation),
            "leader": leader,
            "taken_by": taken_by,
            "verdicts": verdicts,
        }

    def _row(self, shard: ShardRow | None, key: str) -> dict[str, Any] | None:
        """A record's row of a file that has one for each; None where the version lacks the file."""
        if shard is None:
            return None
        table = read_table(self._store, shard)
        place = pc.index(table["key"], pa.scalar(key, pa.string())).as_py()
        if place < 0:
            raise CorruptShardError(
                f"{shard.path} lacks the record {key}, which its shard has: restore it, or delete "
                "it and run `pixelese apply`",
                shard=shard.path,
                key=key,
            )
        return dict(table.slice(place, 1).to_pylist()[0])

    def _pair_number(self, pairs: ShardRow, key: str) -> int:
        table = read_parquet(self._store, ledger_path(pairs.path), columns=["key", "state"])
        stored = table.filter(pc.equal(table["state"], State.OK.value))["key"]
        return int(pc.index(stored, pa.scalar(key, pa.string())).as_py())

    def _cluster(
        self,
        pairs: ShardRow,
        key: str,
        relation: dict[str, Any] | None,
        selected: dict[str, Any] | None,
    ) -> tuple[Member | None, Member | None]:
        """The leader of a record's cluster and the record that took it, where those are others."""
        dropped = selected is not None and selected["dropped_by"] == UNIQUE
        if relation is None or (relation["is_leader"] and not dropped):
            return None, None
        leader = taken_by = None
        for place, other in self._members(relation["cluster"], last=pairs.ordinal):
            if other == key and place == place_of(pairs):
                break
            if other == relation["cluster"] and leader is None:
                leader = self._member(place, other)
            if dropped and taken_by is None and self._is_kept(place, other):
                taken_by = self._member(place, other)
            if leader is not None and (taken_by is not None or not dropped):
                break
        return leader, taken_by

    def _members(self, cluster: str, *, last: int) -> Iterator[tuple[Place, str]]:
        """The records of a cluster in ingest order, up to and including one shard."""

        def look(row: ShardRow) -> list[tuple[Place, str]]:
            table = read_table(self._store, row, columns=["key", "cluster"])
            keys = table.filter(pc.equal(table["cluster"], cluster))["key"].to_pylist()
            return [(place_of(row), key) for key in keys]

        before = [row for row in self._version.rows("relations") if row.ordinal <= last]
        for found in map_shards(look, before, name="relations", watch=self._watch):
            yield from found

    def _is_kept(self, place: Place, key: str) -> bool:
        row = self._row(self._lookup.one("selected", place), key)
        return row is not None and bool(row["kept"])

    def _member(self, place: Place, key: str) -> Member:
        (pairs,) = self._lookup.at("pairs", place)
        table = read_parquet(self._store, ledger_path(pairs.path), columns=["key", "url", "state"])
        is_it = pc.and_(pc.equal(table["key"], key), pc.equal(table["state"], State.OK.value))
        urls = table.filter(is_it)["url"].to_pylist()
        return Member(key=key, url=urls[0] if urls else None, source=place[0], shard=place[1])

    def _pair_verdicts(
        self,
        pairs: ShardRow,
        key: str,
        signals: dict[str, dict[str, Any]],
        relation: dict[str, Any] | None,
        selected: dict[str, Any] | None,
        taken_by: Member | None,
    ) -> list[Verdict]:
        found = self._rule_verdicts(pairs, key)
        image = signals.get("image", {}).get("sha256")
        if image is not None:
            removed = removed_pairs(self._store, self._read_tombstones(), pairs, [key], [image])
            found.append(_removed_verdict(bool(removed[0])))
        if self._declaration.decontaminate and relation is not None:
            found.append(_decontaminate_verdict(relation.get("contaminated_by")))
        if self._declaration.unique is not None and relation is not None:
            detail = "" if taken_by is None else f"the cluster was taken by {taken_by.key}"
            asks = "is the first of its duplicate cluster that got so far"
            found.append(Verdict(step=UNIQUE, asks=asks, detail=detail))
        return _in_order(found, selected)

    def _rule_verdicts(self, pairs: ShardRow, key: str) -> list[Verdict]:
        """Each rule by itself; none where a signal that it reads is not there yet."""
        rules = compile_rules(self._declaration)
        frame = self._signal_frame(pairs, key, {name for rule in rules for name in rule.columns})
        return [
            _rule_verdict(rule, frame) for rule in rules if set(rule.columns) <= set(frame.columns)
        ]

    def _signal_frame(self, pairs: ShardRow, key: str, columns: set[str]) -> pl.DataFrame:
        """One row: the asked signals of a record, in the types that rules are evaluated in."""
        frame = pl.DataFrame({"key": [key]})
        for row in self._lookup.at("signals", place_of(pairs)):
            table = read_table(self._store, row)
            asked = [name for name in table.column_names if name in columns]
            here = table.filter(pc.equal(table["key"], key)).select(asked)
            if asked:
                part = pl.from_arrow(here)
                assert isinstance(part, pl.DataFrame)
                frame = frame.hstack(part)
        return frame

    def _document_verdicts(self, row: FoundRow, selected: dict[str, Any] | None) -> list[Verdict]:
        documents = pa.table(
            {"row_id": [row.values["row_id"]], "fetch_id": [row.values["fetch_id"]]}
        )
        removed = removed_documents(self._read_tombstones(), documents)
        return _in_order([_removed_verdict(bool(removed[0]))], selected)

    def _read_tombstones(self) -> Tombstones:
        if self._tombstones is None:
            self._tombstones = read_tombstones(self._store)
        return self._tombstones

    def _tokens(self, place: Place, key: str, split: str) -> TokenPlace | None:
        """None where the version has none, or those of a selection before this one."""
        rows = [row for row in self._lookup.at("tokens", place) if row.split == split]
        return find_tokens(self._store, rows[0], key) if rows else None


def _rule_verdict(rule: Rule, frame: pl.DataFrame) -> Verdict:
    return Verdict(
        step=rule.name,
        asks=rule.text,
        values={name: frame[name][0] for name in rule.columns},
        thresholds=[_compare(item, frame) for item in find_thresholds(rule.name, rule.text)],
        alone=bool(frame.select(rule=rule.expression)["rule"][0]),
    )


def _compare(threshold: Threshold, frame: pl.DataFrame) -> Comparison:
    return Comparison(
        column=threshold.column,
        asks=f"{threshold.sign} {threshold.value:,.12g}",
        passes=frame.select(passes=threshold.expression)["passes"][0],
        decides=threshold.decides,
    )


def _removed_verdict(is_removed: bool) -> Verdict:
    detail = "a tombstone names its image, URL or row now" if is_removed else ""
    return Verdict(step=REMOVED, asks="has no tombstone", alone=not is_removed, detail=detail)


def _decontaminate_verdict(hit: str | None) -> Verdict:
    detail = "" if hit is None else f"its picture is in the evaluation set {hit}"
    asks = "is in no evaluation set"
    return Verdict(step=DECONTAMINATE, asks=asks, alone=hit is None, detail=detail)


def _in_order(verdicts: Sequence[Verdict], selected: dict[str, Any] | None) -> list[Verdict]:
    """The verdicts with what each step did in its turn, as it is published."""
    if selected is None:
        return list(verdicts)
    dropped_by = selected["dropped_by"]
    names = [verdict.step for verdict in verdicts]
    end = names.index(dropped_by) if dropped_by in names else len(names)
    told = (
        "passes" if n < end else "drops" if n == end else "not reached" for n in range(len(names))
    )
    return [replace(verdict, in_order=word) for verdict, word in zip(verdicts, told, strict=True)]


def _without_key(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "key"}
