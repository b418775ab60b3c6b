"""What an explanation promises: the whole way of a row as it is published, and nothing invented."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.explain import explain_row
from pipeline.pair_shard import read_pairs
from pipeline.remedies import MEANING, REMEDY
from pipeline.row_search import find_rows
from pipeline.shard_table import read_table
from pipeline.trace import Explanation, RowTrace
from schemas.catalog import KINDS, Catalog
from schemas.declaration import parse_declaration
from schemas.errors import CatalogError, CorruptShardError
from schemas.ledger import TRANSIENT, State
from schemas.storage import Store
from tests.pipeline.versions import Made, make_version
from tests.pipeline.written import Line, Written, replay_parts, write_version

SELECT = {"large": "min_side >= 32", "matches": "clip_score >= 0.28 and caption_words < 9"}
LEADER = Line(url="https://a.example/first.jpg", image=1, signals={"clip_score": 0.5})
KEPT = Line(
    url="https://a.example/kept.jpg",
    image=2,
    signals={"clip_score": 0.31},
    words=(16, 3, 17, 18),
    text=(7, 8, 9, 10),
)
DROPPED = Line(
    url="https://a.example/dropped.jpg",
    image=3,
    signals={"clip_score": 0.21},
    dropped_by="matches",
)
COPY = Line(
    url="https://b.example/copy.jpg",
    image=1,
    signals={"clip_score": 0.4},
    cluster=LEADER.key,
    distance=3,
    relation="perceptual",
    dropped_by="unique",
)
SLOW = Line(url="https://slow.example/a.jpg", state="timeout", reason="deadline")
GONE = Line(url="https://slow.example/b.jpg", state="http_4xx", reason="status_404")
BAD = Line(url="no url at all", state="bad_row", reason="bad_url", decided=True)


@pytest.fixture
def made(tmp_path: Path) -> Written:
    made = write_version(
        tmp_path,
        signals={"clip": {"model": "any"}},
        select=SELECT,
        unique={"by": "cluster"},
    )
    made.add([LEADER, KEPT, SLOW, BAD])
    made.add([DROPPED, COPY, GONE])
    return made


def explain(made: Written, query: str) -> Explanation:
    return explain_row(made.store, Catalog(made.store).read(), query)


def trace(made: Written, query: str) -> RowTrace:
    found = explain(made, query)
    assert len(found.rows) == 1
    return found.rows[0]


def verdicts(found: RowTrace) -> list[tuple[str, bool | None, str]]:
    return [(item.step, item.alone, item.in_order) for item in found.verdicts]


def test_a_kept_row_is_followed_to_its_words(made: Written) -> None:
    made.publish()
    found = trace(made, KEPT.key)
    assert found.ended == "tokens"
    assert found.state == "ok"
    assert (found.source, found.shard, found.intake["url"]) == ("web", "000000", KEPT.url)
    assert found.signals["clip"]["clip_score"] == pytest.approx(0.31)
    assert {"image", "caption", "clip"} == set(found.signals)
    assert verdicts(found) == [
        ("large", True, "passes"),
        ("matches", True, "passes"),
        ("removed", True, "passes"),
        ("unique", None, "passes"),
    ]
    place = found.tokens
    assert place is not None
    assert (place.num_text_ids, place.num_codes, place.num_places) == (4, 3, 1)
    # What is told is where the words really are.
    path = Path(made.store.url) / place.path
    for byte, num, words in (
        (place.image_byte, 4, KEPT.words),
        (place.text_byte, 4, KEPT.text),
    ):
        assert byte is not None
        assert np.fromfile(path, np.uint16, num, offset=byte).tolist() == list(words)


def test_a_dropped_row_names_the_signal_and_the_threshold_that_it_fails(made: Written) -> None:
    made.publish()
    found = trace(made, DROPPED.key)
    assert found.ended == "selection"
    assert found.why == "dropped by matches: caption_words is 2, clip_score is 0.21, not >= 0.28"
    assert verdicts(found)[1] == ("matches", False, "drops")
    assert verdicts(found)[2] == ("removed", True, "not reached")
    (score, words) = found.verdicts[1].thresholds
    assert (score.column, score.asks, score.passes) == ("clip_score", ">= 0.28", False)
    assert (words.column, words.asks, words.passes) == ("caption_words", "< 9", True)
    assert found.tokens is None


def test_a_duplicate_names_its_leader_and_who_took_the_cluster(made: Written) -> None:
    made.publish()
    found = trace(made, COPY.key)
    assert found.leader is not None
    assert found.taken_by is not None
    assert (found.leader.key, found.leader.url) == (LEADER.key, LEADER.url)
    assert found.taken_by.key == LEADER.key
    assert found.relation == {
        "cluster": LEADER.key,
        "is_leader": False,
        "distance": 3,
        "relation": "perceptual",
        "contaminated_by": None,
    }
    assert found.why == f"dropped by unique: the cluster was taken by {LEADER.key}"


def test_the_cluster_may_be_taken_by_another_than_its_leader(tmp_path: Path) -> None:
    made = write_version(tmp_path, select={"large": "min_side >= 32"}, unique={"by": "cluster"})
    leader = Line(url="https://a.example/1", signals={"min_side": 8}, dropped_by="large")
    second = Line(url="https://a.example/2", cluster=leader.key, relation="bytes")
    third = Line(
        url="https://a.example/3", cluster=leader.key, relation="bytes", dropped_by="unique"
    )
    for line in (leader, second, third):
        made.add([line])
    made.publish()
    found = trace(made, third.key)
    assert found.leader is not None
    assert found.taken_by is not None
    assert (found.leader.key, found.taken_by.key) == (leader.key, second.key)


@pytest.mark.parametrize(
    ("line", "stage", "replay"),
    [(SLOW, "fetch", "timeout"), (GONE, "fetch", None), (BAD, "intake", None)],
)
def test_a_row_that_ended_early_says_where_why_and_what_to_do(
    made: Written, line: Line, stage: str, replay: str | None
) -> None:
    made.publish()
    found = trace(made, line.key)
    assert (found.ended, found.replay) == (stage, replay)
    assert found.why.startswith(f"{line.state} ({line.reason}): ")
    assert found.remedy
    assert found.signals == {}
    assert found.verdicts == []


def test_every_generation_is_told_and_the_newest_counts(made: Written) -> None:
    again = Line(url=SLOW.url, image=9, generation=1, signals={"clip_score": 0.9})
    made.add([again], parts=replay_parts(1, timeout=1))
    made.publish()
    first, second = explain(made, SLOW.key).rows
    assert (first.generation, first.state, first.replay) == (0, "timeout", None)
    assert "generation 1 counts" in first.remedy
    assert (second.generation, second.state, second.ended) == (1, "ok", "tokens")


def test_a_row_can_be_asked_for_in_each_of_its_names(made: Written) -> None:
    made.publish()
    for query in (KEPT.key, KEPT.key[:8], KEPT.url, "HTTPS://A.example:443/kept.jpg#there"):
        assert explain(made, query).keys == [KEPT.key]
    assert explain(made, BAD.url).keys == [BAD.key]


def test_a_url_opens_only_the_shards_that_can_hold_it(tmp_path: Path) -> None:
    made = write_version(tmp_path)
    lines = [Line(url=f"https://a.example/{number}") for number in range(80)]
    lines.sort(key=lambda line: line.content)
    for start in range(0, 80, 10):
        made.add(lines[start : start + 10], upto="pairs")
    made.publish(complete=False)
    version = Catalog(made.store).read()
    declaration = parse_declaration(version.declaration)
    told: Counter[str] = Counter()

    @contextlib.contextmanager
    def watch(name: str, num_shards: int) -> Iterator[Callable[[int], None]]:
        yield lambda count: told.update({name: count})

    found = find_rows(
        made.store,
        version.rows("intake"),
        lines[33].url,
        declaration=declaration,
        watch=watch,
    )
    assert [row.key for row in found.rows] == [lines[33].key]
    assert found.rows[0].number == 3
    assert found.num_shards == 8
    # The ids that its row would have without a caption lie elsewhere.
    assert 1 <= found.num_read < 8
    assert told == {"footers": 8, "fetch_ids": found.num_read}


def test_captions_of_one_url_are_listed(tmp_path: Path) -> None:
    made = write_version(tmp_path)
    lines = [Line(url="https://a.example/x", caption=f"caption {n}") for n in range(3)]
    made.add(lines)
    made.publish()
    found = explain(made, lines[0].url)
    assert sorted(found.keys) == sorted(line.key for line in lines)
    assert {row.intake["caption"] for row in found.rows} == {line.caption for line in lines}
    assert all(row.signals == {} for row in found.rows)


def test_repeats_of_a_row_are_told_each_with_its_own_state(tmp_path: Path) -> None:
    made = write_version(tmp_path)
    line = Line(url="https://a.example/x")
    repeat = Line(url="https://a.example/x", state="duplicate_row", reason="same_row", decided=True)
    made.add([line, repeat])
    made.publish()
    found = explain(made, line.key)
    assert [row.state for row in found.rows] == ["ok", "duplicate_row"]
    assert [row.ended for row in found.rows] == ["tokens", "intake"]


@pytest.mark.parametrize("query", ["a" * 26, "zzzzzzzz", "https://nowhere.example/x", "?"])
def test_an_unknown_row_is_one_clear_error(made: Written, query: str) -> None:
    made.publish()
    with pytest.raises(CatalogError, match=r"has no row .*\(2 intake shards"):
        explain(made, query)


def test_a_beginning_that_is_too_short_is_refused(made: Written) -> None:
    made.publish()
    with pytest.raises(CatalogError, match="at least 8 characters"):
        explain(made, KEPT.key[:7])


@pytest.mark.parametrize(
    ("upto", "ended", "why"),
    [
        ("pairs", "selection", "nothing is selected"),
        ("signals", "selection", "nothing is selected"),
        ("selected", "tokens", "not encoded"),
    ],
)
def test_an_unfinished_version_says_how_far_it_is(
    tmp_path: Path, upto: str, ended: str, why: str
) -> None:
    made = write_version(tmp_path, select={"large": "min_side >= 64"})
    line = Line(url="https://a.example/x")
    made.add([line], upto=upto)
    made.publish(complete=False)
    found = trace(made, line.key)
    assert found.ended == ended
    assert why in found.why
    assert "pixelese apply" in found.remedy
    if upto == "signals":
        first = found.verdicts[0]
        assert (first.step, first.alone, first.in_order) == ("large", False, "")


def test_a_row_that_waits_to_be_fetched_says_so(made: Written) -> None:
    made.add([Line(url="https://late.example/x")])
    made.rows = [row for row in made.rows if row.kind == "intake" or row.shard != "000002"]
    made.publish()
    found = trace(made, "https://late.example/x")
    assert (found.ended, found.state) == ("intake", None)
    assert "not been fetched" in found.why


def test_an_older_version_can_be_asked(made: Written) -> None:
    made.publish()
    made.add([Line(url="https://late.example/x")])
    made.publish()
    catalog = Catalog(made.store)
    assert explain_row(made.store, catalog.read(2), "https://late.example/x").version == 2
    with pytest.raises(CatalogError, match="no row"):
        explain_row(made.store, catalog.read(1), "https://late.example/x")


def test_the_explanation_is_json(made: Written) -> None:
    line = Line(url="https://a.example/nan", signals={"clip_score": float("nan")}, image=5)
    made.add([line])
    made.publish()
    text = json.dumps(explain(made, line.key).as_json(), allow_nan=False)
    value: dict[str, Any] = json.loads(text)
    assert value["rows"][0]["signals"]["clip"]["clip_score"] is None
    assert value["rows"][0]["tokens"]["num_codes"] == 2


def test_a_damaged_shard_is_named(made: Written) -> None:
    made.publish()
    row = next(row for row in made.rows if row.kind == "intake")
    (Path(made.store.url) / row.path).write_bytes(b"not parquet")
    with pytest.raises(CorruptShardError, match=row.path):
        explain(made, KEPT.key)


def test_an_object_store_is_searched_without_copying_shards(s3: str) -> None:
    made = write_version(f"{s3}/explain")
    made.add([KEPT], upto="pairs")
    made.publish(complete=False)
    assert trace(made, KEPT.url).state == "ok"


def test_a_version_of_the_stages_themselves_is_explained_as_it_is(tmp_path: Path) -> None:
    made = make_version(Store(tmp_path))
    version = Catalog(made.store).read()
    Catalog(made.store).commit(
        [row for kind in KINDS for row in version.rows(kind)],
        parent=version.number,
        declaration=yaml.safe_dump(made.declaration.model_dump(mode="json", exclude_unset=True)),
        complete=True,
    )
    version = Catalog(made.store).read()
    fates: Counter[str] = Counter()
    for shard in version.rows("selected", split="train"):
        for selected in read_table(made.store, shard).to_pylist():
            (found,) = explain_row(made.store, version, selected["key"]).rows
            fates[selected["dropped_by"] or selected["split"]] += 1
            assert found.selected == selected
            assert (found.tokens is not None) == selected["kept"]
            assert (found.taken_by is not None) == (selected["dropped_by"] == "unique")
            if found.tokens is not None:
                _check_words(made, found)
    assert set(fates) == {"train", "validation", "unique"}


def _check_words(made: Made, found: RowTrace) -> None:
    """What stands at the bytes that are told is what the tokenizers say."""
    assert found.tokens is not None
    place, caption = found.tokens, found.intake["caption"]
    path = Path(made.store.url) / place.path
    num_words = place.num_codes + place.num_places
    assert place.text_byte is not None
    text = np.fromfile(path, np.uint16, place.num_text_ids, offset=place.text_byte)
    assert text.tolist() == made.text.encode([caption])[0].tolist()
    if found.pair_path is None:
        assert (num_words, place.image_byte) == (0, None)
        return
    assert place.image_byte is not None
    words = np.fromfile(path, np.uint16, num_words, offset=place.image_byte)
    (pairs,) = [row for row in made.rows("pairs") if row.path == found.pair_path]
    key = found.intake["key"]
    ((image, number),) = [
        (pair.image, number)
        for number, pair in enumerate(read_pairs(made.store, pairs))
        if pair.key == key
    ]
    assert number == found.pair
    assert words.tolist() == made.image.encode([image])[0].tolist()


def test_every_state_has_a_meaning_and_a_remedy() -> None:
    assert set(MEANING) == set(REMEDY) == set(State)
    assert all("replay" in REMEDY[state] for state in TRANSIENT)
