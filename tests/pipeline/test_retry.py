"""Replay: exactly the rows whose newest attempt ended so are taken in again, and the catalog alone
tells where every row of the corpus ended."""

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import new_rows
from pipeline.fetch import fetch_shard
from pipeline.intake import scan_source, take_in
from pipeline.observations import Observation
from pipeline.purge import purge_shard
from pipeline.retry import corpus_states, is_replay, parse_states, take_in_again
from schemas.catalog import ShardRow
from schemas.declaration import Fetch, Images, Source
from schemas.errors import CorruptShardError, DeclarationError, LedgerError
from schemas.fingerprint import bytes_sha256, canonical_json
from schemas.layout import ledger_path, pairs_path
from schemas.ledger import INTAKE_SCHEMA, LEDGER_SCHEMA, TRANSIENT, State
from schemas.ledger import count_states as count_ledger
from schemas.storage import Store
from tests.pipeline.test_archives import make_tar
from tests.pipeline.web import Web, picture, serve

Row = dict[str, Any]
TIMEOUT, OK, GONE = State.TIMEOUT, State.OK, State.HTTP_4XX


@dataclass
class Ingest:
    """A source whose shards end as a test says; `newest` is what a plain dict makes of it."""

    store: Store
    source: Source
    fetch: Fetch
    intake: list[ShardRow] = field(default_factory=list)
    pairs: list[ShardRow] = field(default_factory=list)
    newest: dict[str, str] = field(default_factory=dict)
    """row_id -> state of its newest attempt."""
    settled: Counter[str] = field(default_factory=Counter)
    """Rows that needed no fetching."""

    def take_in(self) -> None:
        rows = take_in(
            self.store,
            self.source,
            scan_source(self.source, self.store),
            fetch=self.fetch,
            known=self.intake,
            next_ordinal=len(self.intake),
        )
        for shard in rows:
            self.intake.append(shard)
            for row in rows_of(self.store, shard):
                if row["state"] is None:
                    self.newest[row["row_id"]] = "pending"
                else:
                    self.settled[row["state"]] += 1

    def end(self, shard: ShardRow, ended: Callable[[Row], State]) -> None:
        """Publishes the ledger of a shard."""
        ledger = []
        for row in rows_of(self.store, shard):
            state = row["state"] or ended(row).value
            names = ("row_id", "fetch_id", "key", "generation", "url", "caption")
            ledger.append({name: row[name] for name in names} | {"state": state})
            if row["state"] is None:
                self.newest[row["row_id"]] = state
        self.pairs.append(publish_ledger(self.store, shard, ledger))

    def again(self, *states: State) -> list[ShardRow]:
        rows = take_in_again(
            self.store,
            self.source,
            pairs=self.pairs,
            intake=self.intake,
            states=frozenset(states),
            fetch=self.fetch,
            next_ordinal=len(self.intake),
            next_shard=len(self.intake),
        )
        found = list(rows)
        self.intake += found
        for shard in found:
            for row in rows_of(self.store, shard):
                assert self.newest[row["row_id"]] in states
                self.newest[row["row_id"]] = "pending"
        return found

    def states(self) -> dict[str, int]:
        return dict(Counter(self.newest.values()) + self.settled)


def rows_of(store: Store, shard: ShardRow) -> list[Row]:
    rows: list[Row] = pq.read_table(store.local(shard.path)).to_pylist()
    return rows


def publish_ledger(store: Store, shard: ShardRow, ledger: list[Row]) -> ShardRow:
    table = pa.Table.from_pylist(ledger, schema=LEDGER_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    path = pairs_path(shard.source, shard.shard, bytes_sha256(sink.getvalue()))
    store.write(ledger_path(path), sink.getvalue())
    states = count_ledger(row["state"] for row in ledger)
    return replace(
        shard,
        kind="pairs",
        path=path,
        parts="{}",
        inputs=shard.sha256,
        states=canonical_json(states).decode(),
    )


def write_list(path: Path, num_urls: int, *, captions: int = 1) -> None:
    lines = [(f"http://a.example/{n}", f"c{c}") for n in range(num_urls) for c in range(captions)]
    pl.DataFrame(lines, schema=["URL", "TEXT"], orient="row").write_parquet(path)


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    """30 URLs with two captions each, in shards of 20 rows."""
    (tmp_path / "corpus").mkdir()
    write_list(tmp_path / "list.parquet", 30, captions=2)
    source = Source(name="web", urls=str(tmp_path / "list.parquet"))
    made = Ingest(Store(tmp_path / "corpus"), source, Fetch(rows_per_shard=20))
    made.take_in()
    return made


def by_url(row: Row) -> State:
    """Every third URL is late, every fifth is gone."""
    number = int(row["url"].rpartition("/")[2])
    return TIMEOUT if number % 3 == 0 else GONE if number % 5 == 0 else OK


def test_failed_rows_are_gathered_into_full_shards(ingest: Ingest) -> None:
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    (again,) = ingest.again(TIMEOUT)
    rows = rows_of(ingest.store, again)
    assert {row["url"] for row in rows} == {f"http://a.example/{n}" for n in range(0, 30, 3)}
    assert (again.kind, again.shard, again.ordinal) == ("intake", "000003", 3)
    assert (again.num_rows, again.num_records) == (20, 20)
    assert json.loads(again.parts) == {"generation": 1, "replaces": {"timeout": 20}}
    assert again.state_counts == {"pending": 20}
    first = {row["row_id"]: row for s in ingest.intake[:3] for row in rows_of(ingest.store, s)}
    for row in rows:
        assert row == {**first[row["row_id"]], "generation": 1, "reason": "timeout"}
    order = [(row["fetch_id"], row["row_id"]) for row in rows]
    assert order == sorted(order)
    assert pq.read_schema(ingest.store.local(again.path)).equals(INTAKE_SCHEMA)


def test_captions_of_one_url_stay_together(ingest: Ingest) -> None:
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    ingest.fetch = Fetch(rows_per_shard=3)
    shards = ingest.again(TIMEOUT, GONE)
    homes: dict[str, set[str]] = {}
    for shard in shards:
        for row in rows_of(ingest.store, shard):
            homes.setdefault(row["fetch_id"], set()).add(shard.shard)
    assert len(homes) == 14
    assert all(len(home) == 1 for home in homes.values())
    assert [shard.num_rows for shard in shards] == [2] * 14


def test_a_row_that_waits_in_a_replay_is_not_taken_again(ingest: Ingest) -> None:
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    assert ingest.again(TIMEOUT)
    assert ingest.again(TIMEOUT) == []
    assert [row.num_rows for row in ingest.again(TIMEOUT, GONE)] == [8]


def test_the_newest_attempt_decides(ingest: Ingest) -> None:
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    (first,) = ingest.again(TIMEOUT)
    ingest.end(first, lambda row: State.HTTP_5XX if row["caption"] == "c0" else OK)
    assert ingest.again(TIMEOUT) == []
    (second,) = ingest.again(State.HTTP_5XX)
    assert json.loads(second.parts) == {"generation": 2, "replaces": {"http_5xx": 10}}
    assert {row["generation"] for row in rows_of(ingest.store, second)} == {2}
    ingest.end(second, lambda row: TIMEOUT)
    (third,) = ingest.again(TIMEOUT)
    assert {row["generation"] for row in rows_of(ingest.store, third)} == {3}


def test_only_ledgers_that_may_hold_a_wanted_row_are_read(ingest: Ingest) -> None:
    ingest.end(ingest.intake[0], lambda row: GONE)
    ingest.end(ingest.intake[1], lambda row: TIMEOUT)
    ingest.end(ingest.intake[2], lambda row: OK)
    for other in (0, 2):
        for row in (ingest.intake[other], ingest.pairs[other]):
            path = row.path if row.kind == "intake" else ledger_path(row.path)
            ingest.store.delete(path)
    assert [row.num_rows for row in ingest.again(TIMEOUT)] == [20]


def test_rows_of_a_replay_are_known_to_intake(ingest: Ingest, tmp_path: Path) -> None:
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    ingest.again(TIMEOUT)
    num_shards = len(ingest.intake)
    write_list(tmp_path / "list.parquet", 31, captions=2)
    ingest.take_in()
    (new,) = ingest.intake[num_shards:]
    assert (new.shard, new.num_rows) == ("000004", 2)


def test_nothing_stays_in_scratch(ingest: Ingest) -> None:
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    ingest.again(TIMEOUT)
    assert list(ingest.store.scratch().iterdir()) == []


def test_a_killed_replay_is_finished_as_it_would_have_been(ingest: Ingest) -> None:
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    ingest.fetch = Fetch(rows_per_shard=6)
    first = list(ingest.intake)
    whole = ingest.again(TIMEOUT)
    assert len(whole) == 4
    for num_done in range(1, 4):
        ingest.intake = [*first, *whole[:num_done]]
        rows = take_in_again(
            ingest.store,
            ingest.source,
            pairs=ingest.pairs,
            intake=ingest.intake,
            states=frozenset([TIMEOUT]),
            fetch=ingest.fetch,
            next_ordinal=len(ingest.intake),
            next_shard=len(ingest.intake),
        )
        assert [row.sha256 for row in rows] == [row.sha256 for row in whole[num_done:]]


def test_images_of_archives_are_read_in_their_order(tmp_path: Path) -> None:
    members = [(f"{n:02d}.{kind}", b"%d" % n) for n in range(12) for kind in ("jpg", "txt")]
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(
            make_tar([(member, name.encode() + data) for member, data in members])
        )
    (tmp_path / "corpus").mkdir()
    source = Source(name="web", tars=str(tmp_path / "*.tar"))
    ingest = Ingest(Store(tmp_path / "corpus"), source, Fetch(rows_per_shard=5))
    ingest.take_in()
    for shard in ingest.intake[:]:
        ingest.end(shard, lambda row: State.INTERNAL_ERROR)
    for shard in ingest.again(State.INTERNAL_ERROR):
        rows = rows_of(ingest.store, shard)
        places = [(row["url"].partition("#")[0], row["offset"]) for row in rows]
        assert places == sorted(places)


def test_a_ledger_of_other_rows_is_an_error(ingest: Ingest) -> None:
    ingest.end(ingest.intake[0], lambda row: TIMEOUT)
    ingest.end(ingest.intake[1], lambda row: TIMEOUT)
    first, second = ingest.pairs
    ingest.pairs = [replace(first, path=second.path), second]
    with pytest.raises(CorruptShardError, match=r"does not hold the rows of intake/web/000000"):
        ingest.again(TIMEOUT)


def test_a_purge_keeps_the_corpus_in_balance(ingest: Ingest) -> None:
    """It makes a row `removed` in every shard that holds it, in that of its replay too."""
    for shard in ingest.intake[:]:
        ingest.end(shard, by_url)
    (again,) = ingest.again(TIMEOUT)
    gone = rows_of(ingest.store, again)[0]["row_id"]
    (replay,) = purge_shard(ingest.store, Observation(intake=again, pairs=None), {gone})
    assert json.loads(replay.parts)["replaces"] == {"removed": 1, "timeout": 19}
    assert is_replay(replay)
    # Its first shard: this row was late, and is removed now.
    home = next(
        place
        for place, shard in enumerate(ingest.intake)
        if gone in {row["row_id"] for row in rows_of(ingest.store, shard)}
    )
    counts = Counter(ingest.pairs[home].state_counts)
    counts.update({"timeout": -1, "removed": 1})
    pairs = list(ingest.pairs)
    pairs[home] = replace(pairs[home], states=json.dumps(counts))
    expected = Counter(ingest.states()) + Counter({"removed": 1}) - Counter({"pending": 1})
    assert corpus_states(pairs, [*ingest.intake[:3], replay]) == expected


def test_states_that_do_not_add_up_are_an_error(ingest: Ingest) -> None:
    ingest.end(ingest.intake[0], by_url)
    with pytest.raises(LedgerError, match="60 input rows"):
        corpus_states([replace(ingest.pairs[0], states='{"ok":3}')], ingest.intake)
    odd = replace(ingest.intake[0], parts='{"generation":1,"replaces":{"http_429":20}}')
    with pytest.raises(LedgerError, match="http_429"):
        corpus_states(ingest.pairs, [odd, *ingest.intake[1:]])


states_of_fetching = [OK, TIMEOUT, GONE, State.DNS_ERROR, State.UNDECODABLE]


def drawn_outcomes(draw: random.Random) -> Callable[[Row], State]:
    """One state a picture, whatever its captions."""
    outcomes: dict[str, State] = {}
    return lambda row: outcomes.setdefault(row["fetch_id"], draw.choice(states_of_fetching))


@settings(max_examples=20)
@given(data=st.data())
def test_any_history_agrees_with_a_plain_dict(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("retry")
    (folder / "corpus").mkdir()
    draw = random.Random(data.draw(st.integers(0, 1000), label="seed"))
    source = Source(name="web", urls=str(folder / "list.parquet"))
    limit = data.draw(st.integers(2, 30), label="rows a shard")
    ingest = Ingest(Store(folder / "corpus"), source, Fetch(rows_per_shard=limit))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_rows, "_PARTITION_BYTES", data.draw(st.sampled_from([2000, 10**6])))
        for _ in range(data.draw(st.integers(1, 4), label="rounds")):
            lines = [
                (f"http://a.example/{draw.randrange(25)}", draw.choice(["a", "b", "None"]))
                for _ in range(40)
            ]
            pl.DataFrame(lines, schema=["URL", "TEXT"], orient="row").write_parquet(
                folder / "list.parquet"
            )
            ingest.take_in()
            fetched = {row.shard for row in ingest.pairs}
            for shard in [row for row in ingest.intake if row.shard not in fetched]:
                if draw.random() < 0.8:
                    ingest.end(shard, drawn_outcomes(draw))
            assert corpus_states(ingest.pairs, ingest.intake) == ingest.states()
            wanted = draw.sample(states_of_fetching[1:], k=draw.randint(1, 3))
            expected = {row for row, state in ingest.newest.items() if state in wanted}
            shards = ingest.again(*wanted)
            found = [row for shard in shards for row in rows_of(ingest.store, shard)]
            assert sorted(row["row_id"] for row in found) == sorted(expected)
            assert all(is_replay(shard) for shard in shards)
            assert corpus_states(ingest.pairs, ingest.intake) == ingest.states()


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


def test_what_failed_for_a_while_comes_with_a_replay(web: Web, tmp_path: Path) -> None:
    """Over real sockets: of eight pictures, four are answered by 503 at first."""
    web.bodies["/fine.jpg"] = picture(3)
    urls = [web.url(f"/flaky/503/1/{number}") for number in range(4)]
    urls += [web.url("/fine.jpg"), web.url("/status/404")]
    lines = [(url, f"caption {number}") for number, url in enumerate(urls)]
    pl.DataFrame(lines, schema=["URL", "TEXT"], orient="row").write_parquet(tmp_path / "l.parquet")
    (tmp_path / "corpus").mkdir()
    source = Source(name="web", urls=str(tmp_path / "l.parquet"))
    fetch = Fetch(retries=0, allow_private_addresses=True, timeout_seconds=5)
    ingest = Ingest(Store(tmp_path / "corpus"), source, fetch)
    ingest.take_in()
    (shard,) = ingest.intake
    images = Images()
    ingest.pairs.append(fetch_shard(ingest.store, shard, source=source, fetch=fetch, images=images))
    before = ingest.pairs[0]
    assert before.state_counts == {"http_4xx": 1, "http_5xx": 4, "ok": 1}
    ingest.newest = dict.fromkeys(ingest.newest, State.HTTP_5XX.value)
    (again,) = ingest.again(*TRANSIENT)
    assert again.num_rows == 4
    made = fetch_shard(ingest.store, again, source=source, fetch=fetch, images=images)
    assert made.state_counts == {"ok": 4}
    ledger = pq.read_table(ingest.store.local(ledger_path(made.path)))
    assert set(ledger["generation"].to_pylist()) == {1}
    assert corpus_states([before, made], ingest.intake) == {"http_4xx": 1, "ok": 5}


def test_states_are_named_by_their_names() -> None:
    assert parse_states("transient") == TRANSIENT
    assert parse_states("dns_error, timeout,HTTP_5XX,") == {
        State.DNS_ERROR,
        State.TIMEOUT,
        State.HTTP_5XX,
    }
    assert parse_states("transient,undecodable") == TRANSIENT | {State.UNDECODABLE}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timeuot", "no state `timeuot`; did you mean `timeout`"),
        ("transiant", "did you mean `transient`"),
        ("zzz", "there are transient, blocked_address, .*internal_error"),
        ("ok", "`ok` cannot be tried again, such rows have their picture"),
        ("timeout,bad_row", "`bad_row` cannot be tried again.*mend the list"),
        ("duplicate_row", "another row stands"),
        ("removed", "not wanted"),
        (" , ", "names no state: write `transient`"),
    ],
)
def test_a_name_that_cannot_be_tried_again_is_refused(text: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        parse_states(text)
